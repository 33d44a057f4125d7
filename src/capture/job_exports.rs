//! Checks whether QEMU serves the exports of a backup job. This implements just enough of NBD's "Fixed newstyle
//! negotiation" (`doc/proto.md`) to list exports. The client that reads disks is [`crate::nbd::Client`].

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::nbd::wire::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, MAX_OPTION_REPLY_BYTES, OPT_ABORT, OPT_LIST, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, REP_ACK, REP_SERVER,
};

/// The time limit for an answer. QEMU answers within milliseconds unless it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The maximum number of exports. A machine does not have more disks.
const MOST_EXPORTS: usize = 4096;

/// Returns the number of exports of a socket. An error of the kind [`ErrorKind::WouldBlock`] means that the server
/// accepts connections but does not answer.
pub(super) fn count(socket: &Path) -> io::Result<usize> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    let count = list(&mut stream);
    // QEMU reports clients that disconnect without this option, also on its monitor.
    if count.is_ok() && stream.write_all(&option(OPT_ABORT)).is_ok() {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    count
}

/// An option request without data.
fn option(kind: u32) -> Vec<u8> {
    let mut request = OPTION_MAGIC.to_be_bytes().to_vec();
    request.extend_from_slice(&kind.to_be_bytes());
    request.extend_from_slice(&[0; 4]);
    request
}

fn list(stream: &mut (impl Read + Write)) -> io::Result<usize> {
    let greeting: [u8; 18] = receive(stream)?;
    if number(&greeting[..8]) != GREETING_MAGIC || number(&greeting[8..16]) != OPTION_MAGIC {
        return Err(ErrorKind::InvalidData.into());
    }
    let flags = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    let mut request = flags.to_be_bytes().to_vec();
    request.extend_from_slice(&option(OPT_LIST));
    stream.write_all(&request)?;
    for found in 0..MOST_EXPORTS {
        let header: [u8; 20] = receive(stream)?;
        let (kind, length) = (number(&header[12..16]) as u32, number(&header[16..20]) as u32);
        if number(&header[..8]) != OPTION_REPLY_MAGIC || length > MAX_OPTION_REPLY_BYTES {
            return Err(ErrorKind::InvalidData.into());
        }
        stream.read_exact(&mut vec![0; length as usize])?;
        match kind {
            REP_SERVER => {}
            REP_ACK => return Ok(found),
            _ => return Err(ErrorKind::InvalidData.into()),
        }
    }
    Err(ErrorKind::InvalidData.into())
}

fn receive<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Decodes a big-endian number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Plays back the given bytes and ignores what it receives.
    struct TestServer(VecDeque<u8>);

    impl Read for TestServer {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for TestServer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(replies: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = [GREETING_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
        bytes.extend([0, 3]);
        for (kind, data) in replies {
            bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
            for field in [OPT_LIST, *kind, data.len() as u32] {
                bytes.extend(field.to_be_bytes());
            }
            bytes.extend_from_slice(data);
        }
        bytes
    }

    #[test]
    fn exports_are_counted_and_malformed_replies_are_errors() {
        let all = said(&[(REP_SERVER, b"\0\0\0\x03vda"), (REP_SERVER, b"\0\0\0\x03vdb"), (REP_ACK, b"")]);
        assert_eq!(list(&mut TestServer(all.clone().into())).unwrap(), 2);
        assert_eq!(list(&mut TestServer(said(&[(REP_ACK, b"")]).into())).unwrap(), 0);
        for length in 0..all.len() {
            assert!(list(&mut TestServer(all[..length].to_vec().into())).is_err(), "{length}");
        }
        assert!(list(&mut TestServer(said(&[(0x8000_0001, b"")]).into())).is_err());
        assert!(list(&mut TestServer(vec![7; 100].into())).is_err());
    }
}
