//! A running console, and a small client without scripts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::call::Running;
use crate::support::{Call, Env, wait_until};
use serde_json::Value;

/// Time limit of a response.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A response.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Page {
    /// Parses a response; None if it is incomplete.
    pub fn parse(bytes: &[u8]) -> Option<Page> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Some(Page { status, headers, body: body.to_owned() })
    }

    /// Returns a header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// Fails unless this is its status.
    #[track_caller]
    pub fn assert_status(self, status: u16) -> Page {
        assert_eq!(self.status, status, "{self:#?}");
        self
    }

    /// Fails unless the page contains this text.
    #[track_caller]
    pub fn assert_has(self, words: &str) -> Page {
        assert!(self.body.contains(words), "no {words:?} in {}", self.body);
        self
    }

    /// Fails if the page contains this text.
    #[track_caller]
    pub fn assert_lacks(self, words: &str) -> Page {
        assert!(!self.body.contains(words), "{words:?} is in {}", self.body);
        self
    }

    /// Returns the value of the first field with this name.
    #[track_caller]
    pub fn field(&self, name: &str) -> String {
        self.fields(name).into_iter().next().unwrap_or_else(|| panic!("no field {name} in {}", self.body))
    }

    /// Returns the values of all fields with this name.
    pub fn fields(&self, name: &str) -> Vec<String> {
        let mark = format!("name=\"{name}\" value=\"");
        let values = self.body.split(&mark).skip(1).filter_map(|rest| rest.split('"').next());
        values.map(unescaped).collect()
    }
}

/// Decodes HTML escapes.
pub fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&")
}

/// Encodes a text as in a form.
pub fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Encodes fields as in a form.
pub fn form(fields: &[(&str, &str)]) -> String {
    fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect::<Vec<_>>().join("&")
}

/// A running console, which is ended by its process id when this is dropped.
pub struct Console {
    pub running: Running,
    pub port: u16,
    pub token: String,
    pub cookie: String,
    pub language: &'static str,
}

/// Starts a console without opening a session.
pub fn start(env: &Env, args: &[&str]) -> Console {
    start_with(env, args, &[])
}

/// The same with these environment variables.
pub fn start_with(env: &Env, args: &[&str], variables: &[(&str, &str)]) -> Console {
    let call = env.kvmb(["ui", "--no-open", "--listen", "127.0.0.1:0"]).args(args).env("KVMB_REPO", env.repo());
    let call = variables.iter().fold(call, |call, (name, value)| call.env(name, value));
    start_call(call)
}

/// The same for a custom call.
pub fn start_call(call: Call) -> Console {
    let running = call.limit(Duration::from_secs(580)).spawn();
    let link = |running: &Running| {
        let said = running.stderr_so_far();
        parse_link(said.lines().find_map(|line| line.strip_prefix("kvmb: open "))?)
    };
    wait_until("it prints a link", LIMIT, || link(&running).is_some());
    let (port, token) = link(&running).unwrap();
    Console { running, port, token, cookie: String::new(), language: "en" }
}

/// Returns the port and the token of a link.
pub fn parse_link(link: &str) -> Option<(u16, String)> {
    let (port, token) = link.strip_prefix("http://127.0.0.1:")?.split_once("/login?token=")?;
    Some((port.parse().ok()?, token.trim().to_owned()))
}

/// Starts a console and opens a session.
pub fn open(env: &Env, args: &[&str]) -> Console {
    open_with(env, args, &[])
}

/// The same with these environment variables.
pub fn open_with(env: &Env, args: &[&str], variables: &[(&str, &str)]) -> Console {
    start_with(env, args, variables).opened()
}

impl Console {
    /// Opens a session with the link.
    pub fn opened(mut self) -> Console {
        let page = self.get(&format!("/login?token={}", self.token)).assert_status(303);
        assert_eq!(page.header("location"), "/");
        self.cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
        self
    }

    /// Returns its host name, as a browser would send it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends bytes and reads the whole response.
    pub fn send(&self, request: &[u8]) -> Option<Page> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        // A request that is refused early is not read to its end.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Page::parse(&answer)
    }

    /// Sends a request with these headers.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Page {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n");
        let request = match method {
            "POST" => format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()),
            _ => format!("{head}\r\n"),
        };
        self.send(request.as_bytes()).unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    /// Opens a page.
    pub fn get(&self, path: &str) -> Page {
        let headers =
            [("Host", self.host()), ("Cookie", self.cookie.clone()), ("Accept-Language", self.language.into())];
        self.request("GET", path, &headers.each_ref().map(|(name, value)| (*name, value.as_str())), "")
    }

    /// Sends a form as a browser does, with a form token.
    pub fn post(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        let token = self.get("/jobs").assert_status(200).field("csrf");
        let fields: Vec<(&str, &str)> = [("csrf", token.as_str())].iter().chain(fields).copied().collect();
        self.post_raw(path, &form(&fields), &format!("http://{}", self.host()))
    }

    /// Sends a form from a page of `origin`.
    pub fn post_raw(&self, path: &str, body: &str, origin: &str) -> Page {
        let host = self.host();
        let mut headers = vec![
            ("Host", host.as_str()),
            ("Cookie", self.cookie.as_str()),
            ("Accept-Language", self.language),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ];
        headers.extend((!origin.is_empty()).then_some(("Origin", origin)));
        self.request("POST", path, &headers, body)
    }

    /// Returns the parts that the live stream of a page sends within this time.
    pub fn events(&self, page: &str, time: Duration) -> Vec<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let (host, cookie, page) = (self.host(), &self.cookie, encoded(page));
        let head = format!("GET /events?page={page} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let (end, mut bytes, mut buffer) = (Instant::now() + time, Vec::new(), [0; 65_536]);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            stream.set_read_timeout(Some(left)).unwrap();
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(_) => {}
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("content-type: text/event-stream"), "{text}");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Writes the change that a page shows for review.
    pub fn write_reviewed(&self, review: &Page) -> Page {
        let mut fields = vec![("sha256".to_owned(), review.field("sha256")), ("back".to_owned(), review.field("back"))];
        fields.extend(review.fields("word").into_iter().map(|word| ("word".to_owned(), word)));
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.post("/settings/write", &fields).assert_status(200).assert_has("Done.")
    }

    /// Sends a form that starts a job, and waits until the job's page shows this state.
    pub fn run_job(&self, path: &str, fields: &[(&str, &str)], state: &str) -> Page {
        let page = self.post(path, fields).assert_status(303);
        let job = page.header("location").to_owned();
        assert!(job.starts_with("/jobs/"), "{job}");
        let is_over = || !self.get(&job).body.contains("st run");
        wait_until("the job ends", Duration::from_secs(120), is_over);
        self.get(&job).assert_status(200).assert_has(state)
    }
}
