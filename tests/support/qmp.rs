//! A second monitor of a QEMU machine, which bypasses libvirt and works while another process holds the embedded root.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Connects to a socket of QEMU, whose file exists a moment before QEMU listens.
pub fn connect_when_it_listens(socket: &Path) -> UnixStream {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > end => panic!("cannot reach the monitor {}: {error}", socket.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A connection to a monitor socket.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and negotiates capabilities.
    pub fn connect(socket: &Path) -> Qmp {
        let stream = connect_when_it_listens(socket);
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        let greeting = qmp.read_line();
        assert!(greeting.get("QMP").is_some(), "not a monitor: {greeting}");
        qmp.call("qmp_capabilities", json!({}));
        qmp
    }

    /// Runs a command. Returns an error of QEMU as text.
    pub fn try_call(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .unwrap_or_else(|error| panic!("{command}: the monitor is gone: {error}"));
        loop {
            let mut answer = self.read_line();
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            }
            // Ignore events.
        }
    }

    /// Runs a command that must succeed.
    pub fn call(&mut self, command: &str, arguments: Value) -> Value {
        self.try_call(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    fn read_line(&mut self) -> Value {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).expect("the monitor does not answer");
        assert!(count > 0, "the monitor has closed the connection");
        serde_json::from_str(&line).expect("the monitor does not speak JSON")
    }
}
