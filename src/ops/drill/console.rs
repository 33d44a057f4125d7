//! The output of a machine's serial ports, read from sockets that QEMU connects to. Its size is limited.

use crate::ops::serve::socket::PrivateSocket;
use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The number of bytes kept of the start and of the end of a port's output.
const KEPT_BYTES: usize = 256 << 10;

/// The maximum number of ports that are read.
const MOST_PORTS: usize = 16;

/// How often to check for new output.
const TICK: Duration = Duration::from_millis(50);

/// The maximum number of bytes read from a port at once, so that a port with endless output does not block the others.
const READ_BYTES: usize = 1 << 20;

/// The output of one port.
#[derive(Debug, Default)]
struct PortText {
    head: Vec<u8>,
    tail: Vec<u8>,
    left_out: u64,
}

impl PortText {
    fn push(&mut self, bytes: &[u8]) {
        let of_head = bytes.len().min(KEPT_BYTES - self.head.len());
        self.head.extend_from_slice(&bytes[..of_head]);
        self.tail.extend_from_slice(&bytes[of_head..]);
        // The tail is cut only now and then, not for each byte.
        if self.tail.len() > 2 * KEPT_BYTES {
            let surplus = self.tail.len() - KEPT_BYTES;
            self.tail.drain(..surplus);
            self.left_out += surplus as u64;
        }
    }

    fn write_to(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(&self.head);
        if self.left_out > 0 {
            text.extend_from_slice(format!("\n[{} bytes omitted]\n", self.left_out).as_bytes());
        }
        text.extend_from_slice(&self.tail);
    }
}

/// The output of the ports behind one socket.
#[derive(Debug, Default)]
pub(super) struct ConsoleText(Mutex<Vec<PortText>>);

impl ConsoleText {
    /// The output of all ports, one after the other.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ports.iter().for_each(|port| port.write_to(&mut text));
        text
    }

    /// The output as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Reads output until `is_over` is set.
    pub(super) fn collect(&self, socket: &PrivateSocket, is_over: &AtomicBool) -> io::Result<()> {
        let listener = socket.listener();
        listener.set_nonblocking(true)?;
        let (mut streams, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        while !is_over.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) if streams.len() < MOST_PORTS => {
                    stream.set_nonblocking(true)?;
                    streams.push(Some(stream));
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).push(PortText::default());
                    continue;
                }
                _ => {}
            }
            for (number, stream) in streams.iter_mut().enumerate() {
                self.read(number, stream, &mut buffer);
            }
            thread::sleep(TICK);
        }
        Ok(())
    }

    fn read(&self, number: usize, stream: &mut Option<UnixStream>, buffer: &mut [u8]) {
        let mut done = 0;
        while let Some(open) = stream
            && done < READ_BYTES
        {
            match open.read(buffer) {
                Ok(0) => *stream = None,
                Ok(count) => {
                    done += count;
                    let mut ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(port) = ports.get_mut(number) {
                        port.push(&buffer[..count]);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => *stream = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_console_output_keeps_its_start_and_end() {
        let mut port = PortText::default();
        (0..40_000u32).for_each(|number| port.push(format!("line {number:08}\n").as_bytes()));
        (0..40_000u32).for_each(|number| port.push(format!("more {number:08}\n").as_bytes()));
        let mut text = Vec::new();
        port.write_to(&mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.len() <= 3 * KEPT_BYTES + 100, "{}", text.len());
        assert!(text.starts_with("line 00000000\n") && text.ends_with("more 00039999\n"));
        assert!(text.contains("bytes omitted]"));
    }
}
