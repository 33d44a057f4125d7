//! An HTTP server that answers each request as a test requires, for behaviour that real servers show rarely.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

pub struct ScriptedRequest {
    /// The request line: `GET /keys/ HTTP/1.1`.
    pub line: String,
    /// The headers in lower case.
    pub headers: Vec<String>,
}

impl ScriptedRequest {
    /// Whether it has a header whose name begins with this.
    pub fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|header| header.starts_with(name))
    }
}

/// Answers every request on its own port, which is returned. Each connection has one request.
pub fn answer_on_a_port(mut answer: impl FnMut(&ScriptedRequest) -> String + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("a port").port();
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            answer_one(&mut client, &mut answer);
        }
    });
    port
}

/// The same on a Unix socket.
pub fn answer_on_a_socket(socket: &Path, mut answer: impl FnMut(&ScriptedRequest) -> String + Send + 'static) {
    let listener = UnixListener::bind(socket).expect("a socket");
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            answer_one(&mut client, &mut answer);
        }
    });
}

fn answer_one<C: Read + Write>(client: &mut C, answer: impl FnOnce(&ScriptedRequest) -> String) {
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    let _ = reader.read_line(&mut line);
    let headers = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let headers: Vec<_> = headers.map(|header| header.to_ascii_lowercase()).collect();
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
    // If the request is not read to its end, the response may be lost.
    let _ = io::copy(&mut reader.by_ref().take(length), &mut io::sink());
    let request = ScriptedRequest { line: line.trim_end().to_owned(), headers };
    let _ = reader.into_inner().write_all(answer(&request).as_bytes());
}

/// Formats a response with a status such as `200 OK`, headers (each with its line end), and a body.
pub fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
