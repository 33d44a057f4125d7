//! A random irreducible polynomial over GF(2).
//!
//! kvmb splits disks at fixed offsets and does not need one. restic, which splits by content, refuses a repository
//! whose config has no irreducible polynomial of degree 53.

use super::Result;
use super::crypto::fill_random;

const DEGREE: u32 = 53;

/// Returns a random irreducible polynomial of degree 53, as a bit mask of its coefficients.
pub(super) fn random_irreducible() -> Result<u64> {
    loop {
        let mut bytes = [0; 8];
        fill_random(&mut bytes)?;
        let low_bits = u64::from_le_bytes(bytes) & ((1 << DEGREE) - 1);
        // About one in 27 of these is irreducible.
        let candidate = 1 << DEGREE | low_bits | 1;
        if is_irreducible(candidate) {
            return Ok(candidate);
        }
    }
}

fn degree(polynomial: u64) -> u32 {
    63u32.saturating_sub(polynomial.leading_zeros())
}

/// Returns `a` modulo `b`.
fn remainder(mut a: u64, b: u64) -> u64 {
    while a != 0 && degree(a) >= degree(b) {
        a ^= b << (degree(a) - degree(b));
    }
    a
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, remainder(a, b));
    }
    a
}

/// Returns `a` times `b` modulo `modulus`, all of degree less than 63.
fn multiply(mut a: u64, mut b: u64, modulus: u64) -> u64 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        b >>= 1;
        a = remainder(a << 1, modulus);
    }
    product
}

/// Ben-Or's test: no factor of degree i divides x^(2^i) - x, for every i up to half the degree.
fn is_irreducible(polynomial: u64) -> bool {
    const X: u64 = 0b10;
    let mut power = X;
    for _ in 1..=degree(polynomial) / 2 {
        power = multiply(power, power, polynomial);
        if greatest_common_divisor(polynomial, power ^ X) != 1 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_irreducible_polynomials_are_identified() {
        let irreducible: Vec<u64> = (4..32).filter(|p| is_irreducible(*p)).collect();
        assert_eq!(irreducible, [0b111, 0b1011, 0b1101, 0b10011, 0b11001, 0b11111]);
    }

    #[test]
    fn polynomials_of_real_repositories_are_irreducible() {
        for polynomial in [0x23109e3bb6f577, 0x25b468838dcb75, 0x3DA3358B4DC173] {
            assert!(is_irreducible(polynomial));
            assert!(!is_irreducible(polynomial ^ 1));
        }
    }

    #[test]
    fn random_polynomial_has_the_required_degree() {
        assert_eq!(degree(random_irreducible().unwrap()), DEGREE);
    }
}
