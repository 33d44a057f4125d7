//! Names and messages that contain HTML, and foreign pages that try to use the session.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::super::client::encoded;
use super::desk;
use crate::support::browser::DESKTOP;
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;

/// A machine, its image and a folder. Each would open an alert if it were not escaped.
const MACHINE: &str = "kvmb-test-<img src=x onerror=alert(1)>";
const IMAGE: &str = "disk'\"><svg onload=alert(2)>.qcow2";
const FOLDER: &str = "/nowhere/\"><script>alert(3)</script>";

#[test]
fn hostile_names_paths_and_messages_are_shown_as_text() {
    let env = Env::new("hostile");
    let machine = env.machine(MACHINE).disk(Disk::qcow2(2 * MIB).file_name(IMAGE)).define();
    machine.write("vda", 0, MIB, 0x11);
    env.configure(&serde_json::json!({ "selected_vms": { "kvmb-test-*": true } }));
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let backup = env.kvmb(["backup", MACHINE, "-r", &env.repo(), "--json"]).run().assert_ok();
    let point = backup.record_of("point")["point"].as_str().unwrap().to_owned();
    // A failed job whose message contains the path.
    let restore = ["restore", &point, "-r", &env.repo(), "--as", "kvmb-test-<b>copy", "--into", FOLDER];
    env.kvmb(restore).run().assert_code(1);
    let job = env.kvmb(["jobs", "--limit", "1", "--json"]).run().records_of("job")[0]["job"].clone();
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    let name = encoded(MACHINE);
    for (path, words) in [
        ("/".to_owned(), MACHINE),
        ("/machines".to_owned(), MACHINE),
        (format!("/machines/{name}"), MACHINE),
        (format!("/points/{point}"), MACHINE),
        ("/restore".to_owned(), MACHINE),
        (format!("/restore?machine={name}"), MACHINE),
        (format!("/restore/{point}/review?where=place"), IMAGE),
        (format!("/restore/{point}/review?where=files&folder={}", encoded(FOLDER)), FOLDER),
        ("/jobs".to_owned(), FOLDER),
        (format!("/jobs/{}", job.as_str().unwrap()), FOLDER),
        ("/retention".to_owned(), "Retention"),
        ("/doctor".to_owned(), "Doctor"),
        ("/settings".to_owned(), "Configuration"),
        ("/?q=%3Cimg%20src%3Dx%20onerror%3Dalert(4)%3E&state=%22%3E%3Cscript%3E".to_owned(), "Overview"),
    ] {
        desk.open(&path);
        assert_eq!(browser.alert(), None, "{path}");
        browser.wait_for(words);
        let foreign = "img, svg[onload], script:not([src='/console.js']), [onerror], main > b";
        assert!(!browser.has(foreign), "{path}: {}", browser.one(foreign).text());
    }
    desk.end();
}

/// A foreign server on this host, which answers every request with a page.
fn foreign_server(page: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // A browser may connect without sending a request.
            let page = page.clone();
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                if stream.read(&mut request).is_ok_and(|count| count > 0) {
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
                    let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{page}", page.len());
                }
            });
        }
    });
    port
}

#[test]
fn foreign_page_can_neither_read_nor_change_anything() {
    let env = Env::new("foreign");
    env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let desk = desk(&env, DESKTOP, &[]);
    let (browser, console) = (&desk.browser, desk.url(""));
    // Another port of the same host is the same site, so the browser sends the cookie.
    let port = foreign_server(format!(
        "<title>foreign</title><form method=post action='{console}/backup'><input name=m value=kvmb-test-vm1>
         <button>Win a prize</button></form><iframe src='{console}/'></iframe>
         <script src='{console}/console.js'></script>"
    ));
    let foreign = format!("http://127.0.0.1:{port}/");
    browser.open(&foreign);
    let read = browser.script(&format!(
        "return fetch('{console}/', {{ credentials: 'include' }}).then((page) => page.text(), () => 'refused');"
    ));
    assert_eq!(read, "refused");
    let framed = browser.script("return document.querySelector('iframe').contentDocument === null;");
    assert_eq!(framed, true);
    browser.click("Win a prize");
    browser.wait_for("Refused");
    assert_eq!(browser.url(), desk.url("/backup"));
    assert!(env.kvmb(["jobs", "--json"]).run().assert_ok().records().is_empty());
    // The session itself is unaffected.
    desk.open("/jobs");
    browser.wait_for("No job is running");
    let (origin, console) = (desk.url("/"), desk.console);
    desk.browser.end_after_visiting(&[&origin, &foreign]);
    console.running.interrupt();
    console.running.wait().assert_ok();
}
