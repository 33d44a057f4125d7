//! A real browser: headless Chromium, driven through WebDriver by the chromedriver of its version.
//!
//! It uses a private folder and resolves no name but `127.0.0.1`. [`Browser::end`] fails if a page has made requests to
//! another host or a connection has left the loopback interface.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::call::Running;
use super::{Env, parts, wait_until};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Time limit for every operation.
const LIMIT: Duration = Duration::from_secs(120);

/// The key of an element's id, defined by the WebDriver standard.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Where `.ci/install-parts` puts the accessibility rules.
const AXE: &str = "/opt/kvmb-test-parts/node_modules/axe-core/axe.min.js";

/// Non-character keys, defined by the WebDriver standard.
pub mod key {
    pub const TAB: &str = "\u{E004}";
    pub const ENTER: &str = "\u{E007}";
    pub const ESCAPE: &str = "\u{E00C}";
    pub const SPACE: &str = " ";
    pub const DOWN: &str = "\u{E015}";
}

/// The settings of a browser window.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub size: (u32, u32),
    /// Whether the desktop prefers a dark colour scheme.
    pub is_dark: bool,
    /// The value of `Accept-Language`.
    pub language: &'static str,
    /// Whether scripts are enabled.
    pub has_scripts: bool,
}

/// A desktop: 1280×800, light, English, with scripts.
pub const DESKTOP: Look = Look { size: (1280, 800), is_dark: false, language: "en", has_scripts: true };

/// A telephone: 390×844.
pub const PHONE: Look = Look { size: (390, 844), ..DESKTOP };

/// Starts chromedriver. It takes a port that is free for IPv6, and exits if another program uses it for IPv4; the next
/// one takes another port.
fn start_driver(env: &Env) -> (Running, u16) {
    let port = |driver: &Running| -> Option<u16> {
        let said = driver.stdout_so_far();
        said.split_once("successfully on port ")?.1.split_once('.')?.0.parse().ok()
    };
    loop {
        let mut driver = env.program("chromedriver").arg("--port=0").limit(Duration::from_secs(560)).spawn();
        wait_until("chromedriver listens or exits", LIMIT, || port(&driver).is_some() || driver.has_ended());
        if let Some(port) = port(&driver) {
            return (driver, port);
        }
        let output = driver.wait();
        assert!(output.stdout().contains("port not available"), "{output}");
    }
}

/// A running browser. Its processes belong to the test and end with it.
pub struct Browser {
    driver: Running,
    port: u16,
    session: String,
    folder: PathBuf,
    look: Cell<Look>,
}

impl Browser {
    /// Starts a browser with an empty page.
    pub fn start(env: &Env, look: Look) -> Browser {
        parts::require(&["chromium", "chromedriver"]);
        let folder = tempfile::Builder::new().prefix("browser-").tempdir_in(env.path("")).expect("a folder").keep();
        let (driver, port) = start_driver(env);
        let mut browser = Browser { driver, port, session: String::new(), folder, look: Cell::new(look) };
        let options = json!({
            "binary": parts::find("chromium"),
            "args": browser.arguments(look.language),
            // 2 means "blocked". chromedriver's own scripts still run.
            "prefs": { "profile.managed_default_content_settings.javascript": if look.has_scripts { 1 } else { 2 } },
        });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "unhandledPromptBehavior": "ignore",
        } } });
        let session = browser.call("POST", "session", &wanted);
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser.set_look(look);
        browser
    }

    fn arguments(&self, language: &str) -> Vec<String> {
        let flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
                     --disable-background-networking --force-prefers-reduced-motion \
                     --disable-component-update --disable-sync --disable-breakpad --hide-scrollbars";
        let own = [
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1".to_owned(),
            format!("--user-data-dir={}", self.folder.display()),
            format!("--log-net-log={}", self.net_log().display()),
            format!("--accept-lang={language}"),
        ];
        flags.split_whitespace().map(str::to_owned).chain(own).collect()
    }

    fn net_log(&self) -> PathBuf {
        self.folder.join("net.json")
    }

    /// Sends a WebDriver command. Returns its value or its error.
    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("chromedriver is there");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket");
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let head = format!("{method} /{path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n", self.port);
        let request = format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).expect("chromedriver listens");
        let text = read_answer(&mut stream).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let mut answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let value = answer["value"].take();
        if value.get("error").is_some_and(Value::is_string) { Err(value) } else { Ok(value) }
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|error| {
            panic!("{method} {path}: {}: {}", error["error"], error["message"].as_str().unwrap_or_default())
        })
    }

    #[track_caller]
    fn ask(&self, method: &str, what: &str, body: &Value) -> Value {
        self.call(method, &format!("session/{}/{what}", self.session), body)
    }

    /// Sends a DevTools command.
    #[track_caller]
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.ask("POST", "goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Changes the size and the colour scheme. The language and the scripts cannot be changed.
    pub fn set_look(&self, look: Look) {
        let (width, height) = look.size;
        let is_phone = width < 600;
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone });
        self.devtools("Emulation.setDeviceMetricsOverride", &screen);
        let scheme = if look.is_dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", &features);
        self.look.set(look);
    }

    /// Opens a page and waits until it is loaded.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.ask("POST", "url", &json!({ "url": url }));
    }

    #[track_caller]
    pub fn reload(&self) {
        self.ask("POST", "refresh", &json!({}));
    }

    #[track_caller]
    pub fn url(&self) -> String {
        self.ask("GET", "url", &Value::Null).as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn title(&self) -> String {
        self.ask("GET", "title", &Value::Null).as_str().unwrap_or_default().to_owned()
    }

    /// Returns the elements that match a CSS selector.
    #[track_caller]
    pub fn all(&self, css: &str) -> Vec<Element<'_>> {
        self.find_all("css selector", css)
    }

    #[track_caller]
    fn find_all(&self, using: &str, what: &str) -> Vec<Element<'_>> {
        let found = self.ask("POST", "elements", &json!({ "using": using, "value": what }));
        let ids = found.as_array().into_iter().flatten().filter_map(|element| element[ELEMENT].as_str());
        let element = |(at, id): (usize, &str)| Element {
            browser: self,
            id: RefCell::new(id.to_owned()),
            search: (using.to_owned(), what.to_owned(), at),
        };
        ids.enumerate().map(element).collect()
    }

    /// Polls until `ask` returns something; fails with the page's text after the time limit.
    #[track_caller]
    fn eventually<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        let mut pause = Duration::from_millis(20);
        loop {
            if let Some(found) = ask() {
                return found;
            }
            assert!(Instant::now() < end, "{what} on {}: {}", self.url(), self.text());
            // Each query makes the browser search the whole page, so poll less often over time.
            thread::sleep(pause);
            pause = (pause * 3 / 2).min(Duration::from_millis(250));
        }
    }

    /// Waits for the first element that matches a CSS selector.
    #[track_caller]
    pub fn one(&self, css: &str) -> Element<'_> {
        self.eventually(&format!("nothing is {css}"), || self.all(css).into_iter().next())
    }

    /// Whether any element matches a CSS selector.
    #[track_caller]
    pub fn has(&self, css: &str) -> bool {
        !self.all(css).is_empty()
    }

    /// Waits for the first link, button or label with exactly this text, and clicks on it.
    #[track_caller]
    pub fn click(&self, words: &str) {
        let kinds = ["a", "button", "label", "summary", "b"];
        let paths = kinds.map(|kind| format!("//{kind}[normalize-space(.)={words:?}]")).join("|");
        let shown = || self.find_all("xpath", &paths).into_iter().find(Element::is_shown);
        self.eventually(&format!("nothing to click on says {words:?}"), shown).click();
    }

    /// Returns the visible text of the page.
    #[track_caller]
    pub fn text(&self) -> String {
        let body = self.all("body").into_iter().next();
        // A page that is just being replaced has no body.
        body.and_then(|body| body.try_ask("text")?.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until the page shows this text.
    #[track_caller]
    pub fn wait_for(&self, words: &str) {
        self.eventually(&format!("no {words:?}"), || self.text().contains(words).then_some(()));
    }

    /// Presses keys, one after the other, in the focused element.
    #[track_caller]
    pub fn press(&self, keys: &[&str]) {
        let events = keys
            .iter()
            .flat_map(|key| [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]);
        let actions = json!({ "type": "key", "id": "keyboard", "actions": events.collect::<Vec<_>>() });
        self.ask("POST", "actions", &json!({ "actions": [actions] }));
    }

    /// Types a text into the focused element.
    #[track_caller]
    pub fn type_text(&self, text: &str) {
        let keys: Vec<String> = text.chars().map(String::from).collect();
        self.press(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Runs a script in the page, and returns its result.
    #[track_caller]
    pub fn script(&self, text: &str) -> Value {
        self.ask("POST", "execute/sync", &json!({ "script": text, "args": [] }))
    }

    /// Returns the text of an open alert. Usually there is none.
    pub fn alert(&self) -> Option<String> {
        let text = self.try_call("GET", &format!("session/{}/alert/text", self.session), &Value::Null).ok()?;
        text.as_str().map(str::to_owned)
    }

    /// Returns the ids of the tabs.
    #[track_caller]
    pub fn tabs(&self) -> Vec<String> {
        let tabs = self.ask("GET", "window/handles", &Value::Null);
        tabs.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Opens a tab and switches to it.
    #[track_caller]
    pub fn new_tab(&self) -> String {
        let tab = self.ask("POST", "window/new", &json!({ "type": "tab" }));
        let id = tab["handle"].as_str().expect("a tab").to_owned();
        self.go_to_tab(&id);
        self.set_look(self.look.get());
        id
    }

    /// Switches to a tab.
    #[track_caller]
    pub fn go_to_tab(&self, id: &str) {
        self.ask("POST", "window", &json!({ "handle": id }));
    }

    /// Returns a screenshot as a PNG.
    #[track_caller]
    pub fn screenshot(&self) -> Vec<u8> {
        let picture = self.devtools("Page.captureScreenshot", &json!({}));
        STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64")
    }

    /// Returns a reduced screenshot.
    #[track_caller]
    pub fn small_screenshot(&self, scale: f64) -> Vec<u8> {
        let (width, height) = self.look.get().size;
        let top = self.script("return window.scrollY;");
        let clip = json!({ "x": 0, "y": top, "width": width, "height": height, "scale": scale });
        let picture = self.devtools("Page.captureScreenshot", &json!({ "clip": clip, "captureBeyondViewport": true }));
        STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64")
    }

    /// Returns by how many pixels the page is wider than the window.
    #[track_caller]
    pub fn overflow(&self) -> i64 {
        let script = "const page = document.documentElement; return page.scrollWidth - page.clientWidth;";
        self.script(script).as_i64().expect("a number")
    }

    /// Returns the violations of WCAG 2.2 AA and of axe-core's best practices, one line each. Light and dark pages
    /// differ only in colours.
    #[track_caller]
    pub fn accessibility_faults(&self, only_colours: bool) -> Vec<String> {
        // The script has half a megabyte, and stays in the page.
        if self.script("return window.axe === undefined;") == true {
            let axe = fs::read_to_string(AXE).unwrap_or_else(|error| {
                panic!("the tests need axe-core; as root run: .ci/install-parts ({AXE}: {error})")
            });
            self.script(&axe);
        }
        let script = "const [onlyColours, done] = arguments;
            const options = { resultTypes: ['violations'] };
            if (onlyColours) options.runOnly = ['color-contrast', 'link-in-text-block'];
            axe.run(document, options).then(
            (found) => done(found.violations.flatMap((fault) => fault.nodes.map((node) =>
                fault.id + ': ' + node.target.join(' ') + ': ' + node.failureSummary.replace(/\\s+/g, ' ')))),
            (error) => done(['axe: ' + error]));";
        let found = self.ask("POST", "execute/async", &json!({ "script": script, "args": [only_colours] }));
        found.as_array().expect("a list").iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Ends the browser. Fails if a connection has left this host, or if a page has requested anything outside
    /// `origin`.
    #[track_caller]
    pub fn end(self, origin: &str) {
        self.end_after_visiting(&[origin]);
    }

    /// Like `end`, for several origins.
    #[track_caller]
    pub fn end_after_visiting(self, origins: &[&str]) {
        self.call("DELETE", &format!("session/{}", self.session), &Value::Null);
        let log = self.net_log();
        wait_until("the browser has ended", LIMIT, || read_net_log(&log).is_some());
        self.driver.interrupt();
        self.driver.wait();
        let (asked, connected) = read_net_log(&log).expect("a log");
        let is_known = |url: &&String| origins.iter().any(|origin| url.starts_with(origin));
        assert!(asked.iter().any(|url| is_known(&url)), "nothing of {origins:?} was asked for: {asked:?}");
        let foreign: Vec<_> = asked.iter().filter(|url| !is_known(url)).collect();
        assert!(foreign.is_empty(), "pages asked for {foreign:?}");
        assert!(!connected.is_empty() && connected.iter().all(|to| to.starts_with("127.0.0.1:")), "{connected:?}");
    }
}

/// Reads the body of a response. The driver keeps its connections open, so the body does not end with the connection.
fn read_answer(stream: &mut TcpStream) -> std::io::Result<String> {
    let (mut reader, mut line, mut length) = (BufReader::new(stream), String::new(), 0);
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    String::from_utf8(body).map_err(std::io::Error::other)
}

/// Returns the requests of pages and the targets of connections from the browser's own log; None while it is
/// incomplete.
fn read_net_log(file: &Path) -> Option<(Vec<String>, Vec<String>)> {
    let log = fs::read(file).ok()?;
    // The log has megabytes, so parse it only when it is complete.
    let log: Value = log.trim_ascii_end().ends_with(b"}").then(|| serde_json::from_slice(&log).ok())??;
    let types = &log["constants"]["logEventTypes"];
    let of_type = |name: &str| {
        let number = &types[name];
        assert!(number.is_number(), "the browser's log knows no {name}");
        let events = log["events"].as_array().into_iter().flatten();
        events.filter(move |event| &event["type"] == number).map(|event| &event["params"])
    };
    let by_pages = of_type("URL_REQUEST_START_JOB")
        .filter(|request| request["initiator"].as_str().is_some_and(|page| page != "not an origin"));
    let asked = by_pages.filter_map(|request| request["url"].as_str()).map(str::to_owned).collect();
    let connected = of_type("TCP_CONNECT_ATTEMPT").filter_map(|to| to["address"].as_str()).map(str::to_owned).collect();
    Some((asked, connected))
}

pub struct Element<'b> {
    browser: &'b Browser,
    id: RefCell<String>,
    /// How it was found: strategy, selector and index.
    search: (String, String, usize),
}

impl Element<'_> {
    #[track_caller]
    fn ask(&self, method: &str, what: &str, body: &Value) -> Value {
        let (using, css, at) = &self.search;
        self.browser.eventually(&format!("{css} is gone or cannot be used"), || {
            let path = format!("session/{}/element/{}/{what}", self.browser.session, self.id.borrow());
            match self.browser.try_call(method, &path, body) {
                Ok(value) => Some(value),
                // A live update has replaced the element.
                Err(error) if error["error"] == "stale element reference" => {
                    let again = self.browser.find_all(using, css).into_iter().nth(*at);
                    again.into_iter().for_each(|again| *self.id.borrow_mut() = again.id.into_inner());
                    None
                }
                // The page has just been opened and is not painted or focused yet.
                Err(error) if error["error"] == "element not interactable" => None,
                Err(error) => panic!("{method} {path}: {}: {}", error["error"], error["message"]),
            }
        })
    }

    /// Clicks on the element, and waits for the page that this opens.
    #[track_caller]
    pub fn click(&self) {
        self.ask("POST", "click", &json!({}));
    }

    /// Clears the field and types into it.
    #[track_caller]
    pub fn fill(&self, text: &str) {
        self.ask("POST", "clear", &json!({}));
        self.ask("POST", "value", &json!({ "text": text }));
    }

    /// Returns its visible text.
    #[track_caller]
    pub fn text(&self) -> String {
        self.ask("GET", "text", &Value::Null).as_str().unwrap_or_default().to_owned()
    }

    /// Queries the element; None if its page has been replaced.
    fn try_ask(&self, what: &str) -> Option<Value> {
        let path = format!("session/{}/element/{}/{what}", self.browser.session, self.id.borrow());
        self.browser.try_call("GET", &path, &Value::Null).ok()
    }

    /// Returns the value of an attribute, or the current value of a field.
    #[track_caller]
    pub fn property(&self, name: &str) -> Value {
        self.ask("GET", &format!("property/{name}"), &Value::Null)
    }

    /// Whether it is visible.
    pub fn is_shown(&self) -> bool {
        self.try_ask("displayed") == Some(Value::Bool(true))
    }
}
