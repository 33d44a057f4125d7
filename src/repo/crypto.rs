//! Encryption: AES-256-CTR with Poly1305-AES authentication, as in restic.
//!
//! ```text
//! 16 bytes IV │ ciphertext, as long as the plaintext │ 16 bytes authentication code
//! ```

use std::fmt;

use aes256ctr_poly1305aes::aead::AeadInPlace;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce, Tag};
use rand::{Rng, TryRngCore};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::base64;
use super::{Error, Flaw, Result};

/// Bytes before the ciphertext.
pub(super) const IV_LENGTH: usize = 16;
/// Bytes after the ciphertext.
const TAG_LENGTH: usize = 16;
/// The difference between the lengths of sealed data and plaintext.
pub(super) const OVERHEAD: usize = IV_LENGTH + TAG_LENGTH;

/// A password. It is wiped when dropped and never shown.
#[derive(Clone)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Wraps a text.
    pub fn new(text: String) -> Self {
        Password(Zeroizing::new(text.into_bytes()))
    }

    /// Wraps bytes, which need not be text.
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Self {
        Password(Zeroizing::new(bytes))
    }

    /// Returns the password's bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// 32 bytes for AES-256, 16 for the AES of the MAC, 16 for the `r` of the MAC.
#[derive(Clone)]
pub(super) struct SealKey(Zeroizing<[u8; 64]>);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(…)")
    }
}

/// Why sealed data cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenError {
    TooShort,
    Unauthentic,
}

/// The master key in restic's JSON.
#[derive(Serialize, Deserialize)]
struct KeyJson {
    mac: MacJson,
    #[serde(with = "base64")]
    encrypt: Zeroizing<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct MacJson {
    #[serde(with = "base64")]
    k: Zeroizing<Vec<u8>>,
    #[serde(with = "base64")]
    r: Zeroizing<Vec<u8>>,
}

impl SealKey {
    pub(super) fn from_bytes(bytes: [u8; 64]) -> Self {
        SealKey(Zeroizing::new(bytes))
    }

    /// Generates a master key.
    pub(super) fn random() -> Result<Self> {
        let mut key = SealKey::from_bytes([0; 64]);
        fill_random(&mut *key.0)?;
        Ok(key)
    }

    pub(super) fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let part = |range: std::ops::Range<usize>| Zeroizing::new(self.0[range].to_vec());
        let json = KeyJson { mac: MacJson { k: part(32..48), r: part(48..64) }, encrypt: part(0..32) };
        // The capacity is never exceeded: a reallocation would leave a copy of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
        let _ = serde_json::to_writer(&mut *bytes, &json);
        bytes
    }

    /// Returns `None` if this is not a key, or if a part of it is all zeros.
    pub(super) fn from_json(json: &[u8]) -> Option<Self> {
        let json: KeyJson = serde_json::from_slice(json).ok()?;
        let mut key = SealKey::from_bytes([0; 64]);
        for (range, part) in [(0..32, &json.encrypt), (32..48, &json.mac.k), (48..64, &json.mac.r)] {
            if part.len() != range.len() || part.iter().all(|byte| *byte == 0) {
                return None;
            }
            key.0[range].copy_from_slice(part);
        }
        Some(key)
    }

    fn cipher(&self) -> Aes256CtrPoly1305Aes {
        Aes256CtrPoly1305Aes::new(Key::from_slice(&*self.0))
    }

    /// Seals in place. `buffer` contains 16 unused bytes and the plaintext, and is replaced by the sealed data.
    pub(super) fn seal_in_place(&self, buffer: &mut Vec<u8>) -> Result<()> {
        let mut iv = [0; IV_LENGTH];
        rand::rng().fill(&mut iv);
        buffer[..IV_LENGTH].copy_from_slice(&iv);
        let tag = self
            .cipher()
            .encrypt_in_place_detached(Nonce::from_slice(&iv), b"", &mut buffer[IV_LENGTH..])
            .map_err(|e| Error::Encrypt(e.to_string()))?;
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    pub(super) fn seal(&self, plaintext: &[u8]) -> Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(plaintext.len() + OVERHEAD);
        buffer.resize(IV_LENGTH, 0);
        buffer.extend_from_slice(plaintext);
        self.seal_in_place(&mut buffer)?;
        Ok(buffer)
    }

    /// Opens in place. The MAC is verified before anything is decrypted.
    pub(super) fn open_in_place<'a>(&self, sealed: &'a mut [u8]) -> std::result::Result<&'a mut [u8], OpenError> {
        if sealed.len() < OVERHEAD {
            return Err(OpenError::TooShort);
        }
        let (iv, rest) = sealed.split_at_mut(IV_LENGTH);
        let (text, tag) = rest.split_at_mut(rest.len() - TAG_LENGTH);
        self.cipher()
            .decrypt_in_place_detached(Nonce::from_slice(iv), b"", text, Tag::from_slice(tag))
            .map_err(|_| OpenError::Unauthentic)?;
        Ok(text)
    }
}

/// Fills a buffer with random bytes from the system, for keys and salts.
pub(super) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    rand::rngs::OsRng.try_fill_bytes(bytes).map_err(|e| Error::Random(std::io::Error::other(e)))
}

impl From<OpenError> for Flaw {
    fn from(error: OpenError) -> Flaw {
        match error {
            OpenError::TooShort => Flaw::TooShort,
            OpenError::Unauthentic => Flaw::Unauthentic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> SealKey {
        SealKey::random().unwrap()
    }

    proptest! {
        #[test]
        fn sealed_data_round_trips(plain in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let key = key();
            let mut sealed = key.seal(&plain).unwrap();
            prop_assert_eq!(sealed.len(), plain.len() + OVERHEAD);
            prop_assert_eq!(key.open_in_place(&mut sealed).unwrap(), &plain[..]);
        }

        #[test]
        fn flipped_bits_truncation_and_wrong_keys_are_detected(
            plain in proptest::collection::vec(any::<u8>(), 0..300),
            position: prop::sample::Index,
            bit in 0u8..8,
            lost in 1usize..400,
        ) {
            let key = key();
            let sealed = key.seal(&plain).unwrap();
            let mut flipped = sealed.clone();
            flipped[position.index(sealed.len())] ^= 1 << bit;
            prop_assert_eq!(key.open_in_place(&mut flipped).err(), Some(OpenError::Unauthentic));
            let mut short = sealed[..sealed.len().saturating_sub(lost)].to_vec();
            prop_assert!(key.open_in_place(&mut short).is_err());
            let mut other = sealed.clone();
            prop_assert!(super::tests::key().open_in_place(&mut other).is_err());
        }
    }

    #[test]
    fn master_key_round_trips_through_json() {
        let key = key();
        let again = SealKey::from_json(&key.to_json()).unwrap();
        assert_eq!(key.0, again.0);
        assert!(SealKey::from_json(b"{}").is_none());
        assert!(SealKey::from_json(&SealKey::from_bytes([0; 64]).to_json()).is_none());
    }

    #[test]
    fn secrets_are_hidden_in_debug_output() {
        let password = Password::new("open sesame".into());
        assert_eq!(format!("{password:?}"), "Password(…)");
        assert_eq!(format!("{:?}", key()), "SealKey(…)");
    }
}
