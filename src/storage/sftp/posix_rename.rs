//! Putting a file in the place of another one in one step.
//!
//! SFTP's own rename refuses a name that is taken. OpenSSH's extension `posix-rename@openssh.com` replaces it, but the `ssh2`
//! crate has no call for it. The names of a repository are hashes of the contents, so this is rare: a channel of its own
//! for these three packets is good enough.
//!
//! | sent | answered |
//! | --- | --- |
//! | `INIT`, version 3 | `VERSION` and what the server can do |
//! | `EXTENDED`, number, `posix-rename@openssh.com`, from, to | `STATUS`, number, code |

use super::Connection;
use super::connection::Answer;
use super::error::Result;
use ssh2::{Channel, ErrorCode};
use std::io::{self, ErrorKind, Read, Write};

const INIT: u8 = 1;
const VERSION: u8 = 2;
const STATUS: u8 = 101;
const EXTENDED: u8 = 200;

/// No answer of a server to this is longer.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Renames; the answer is a status code of SFTP: 0 is done.
pub fn posix_rename(connection: &Connection, from: &str, to: &str) -> Result<Answer<i32>> {
    let session = connection.session();
    let mut channel = match connection.call(|| session.channel_session())? {
        Ok(channel) => channel,
        Err(error) => return Ok(Err(error)),
    };
    if let Err(error) = connection.call(|| channel.subsystem("sftp"))? {
        return Ok(Err(error));
    }
    let mut talk = Talk { connection, channel: &mut channel };
    talk.send(&[&[INIT], &3u32.to_be_bytes()])?;
    let answer = talk.receive()?;
    if answer.first() != Some(&VERSION) {
        return Err(connection.lost("it answers no SFTP"));
    }
    let words = ["posix-rename@openssh.com", from, to].map(|word| {
        let length = u32::try_from(word.len()).unwrap_or(u32::MAX);
        [&length.to_be_bytes(), word.as_bytes()].concat()
    });
    talk.send(&[&[EXTENDED], &1u32.to_be_bytes(), &words.concat()])?;
    let answer = talk.receive()?;
    let code = answer.get(5..9).and_then(|code| <[u8; 4]>::try_from(code).ok()).map(i32::from_be_bytes);
    match (answer.first(), code) {
        (Some(&STATUS), Some(code)) => {
            connection.call(|| channel.close())?.ok();
            Ok(Ok(code))
        }
        _ => Err(connection.lost("it answers no SFTP")),
    }
}

struct Talk<'a> {
    connection: &'a Connection,
    channel: &'a mut Channel,
}

impl Talk<'_> {
    fn send(&mut self, parts: &[&[u8]]) -> Result<()> {
        let body = parts.concat();
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let packet = [&length.to_be_bytes(), body.as_slice()].concat();
        let mut rest = packet.as_slice();
        while !rest.is_empty() {
            match self.transfer(|channel| channel.write(rest))? {
                0 => return Err(self.connection.lost("it takes no more")),
                sent => rest = &rest[sent..],
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST_ANSWER {
            return Err(self.connection.lost("it answers no SFTP"));
        }
        let mut body = vec![0; length];
        self.fill(&mut body)?;
        Ok(body)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.transfer(|channel| channel.read(&mut bytes[filled..]))? {
                0 => return Err(self.connection.lost("it ended the channel")),
                read => filled += read,
            }
        }
        Ok(())
    }

    fn transfer(&mut self, mut call: impl FnMut(&mut Channel) -> io::Result<usize>) -> Result<usize> {
        let channel = &mut *self.channel;
        let answer = self.connection.call(|| {
            call(channel).map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => ssh2::Error::from_errno(ErrorCode::Session(-37)),
                _ => ssh2::Error::last_session_error(self.connection.session()).unwrap_or_else(ssh2::Error::unknown),
            })
        })?;
        answer.map_err(|error| self.connection.lost(error.message()))
    }
}
