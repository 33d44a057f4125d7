//! Files of a point in the console: browsing, searching, downloading and copying; and malicious guests.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use super::client::{Console, LIMIT, Page, encoded, form, open};
use crate::support::backups::{backup, init, names_in, new_folder, noise};
use crate::support::{Disk, Env, wait_until};

const VM: &str = "kvmb-test-vm1";

/// The size of a file that does not fit into the buffers on the way to the browser.
const BIG: u64 = 12 << 20;

/// Names with a special meaning in HTML, in a header or on a command line.
pub const HOSTILE: [&str; 5] = [
    "<img src=x onerror=alert(1)>",
    "\"><script>alert(2)</script>",
    "--to=x",
    "a\nSet-Cookie: x=y",
    "\u{202e}fdp.exe & 'quoted'; $(id)",
];

/// Backs up a machine whose file system has these names, and returns the point's id.
pub fn backed_up(env: &Env) -> String {
    let tree = env.path("tree");
    fs::create_dir_all(tree.join("etc/conf.d")).unwrap();
    fs::create_dir_all(tree.join("hostile/<b>folder")).unwrap();
    fs::write(tree.join("etc/os-release"), "PRETTY_NAME=\"Test <i>Linux</i>\"\n").unwrap();
    fs::write(tree.join("etc/fstab"), "# nothing\n").unwrap();
    fs::write(tree.join("etc/conf.d/a.conf"), "a=1\n").unwrap();
    fs::write(tree.join("etc/conf.d/[b].conf"), "b=2\n").unwrap();
    fs::write(tree.join("big"), noise(1, BIG)).unwrap();
    for name in HOSTILE {
        let name = name.replace('/', "\u{2215}");
        fs::write(tree.join("hostile").join(name), "text\n").unwrap();
    }
    // Links that would leave the guest if this host followed them.
    std::os::unix::fs::symlink(env.path("secret"), tree.join("etc/outside")).unwrap();
    std::os::unix::fs::symlink("../../../../etc/fstab", tree.join("etc/up")).unwrap();
    fs::write(env.path("secret"), "of the host").unwrap();
    let make = format!(
        "export PATH=$PATH:/usr/sbin; cd '{}'; touch \"tree/hostile/$(printf '\\377')\"
         mkfs.ext4 -q -d tree image 64M",
        env.path("").display()
    );
    env.sh(&make).run().assert_ok();
    let machine = env.machine(VM).disk(Disk::existing(&env.path("image"), "raw")).define();
    init(env);
    backup(&machine)["point"].as_str().unwrap().to_owned()
}

/// A response with a binary body.
struct Download {
    page: Page,
    bytes: Vec<u8>,
    /// Whether the body was complete.
    is_complete: bool,
}

/// Submits the form of a page with files, and reads the response to its end.
fn download(console: &Console, id: &str, fields: &[(&str, &str)]) -> Download {
    let mut stream = ask(console, id, fields);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let page = Page::parse(&answer).expect("an answer");
    let start = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
    let body = &answer[start..];
    if page.header("transfer-encoding") == "chunked" {
        let (bytes, is_complete) = unchunked(body);
        return Download { page, bytes, is_complete };
    }
    let is_complete = page.header("content-length") == body.len().to_string();
    Download { page, bytes: body.to_vec(), is_complete }
}

fn ask(console: &Console, id: &str, fields: &[(&str, &str)]) -> TcpStream {
    let token = console.get("/jobs").assert_status(200).field("csrf");
    let fields: Vec<(&str, &str)> = [("csrf", token.as_str())].iter().chain(fields).copied().collect();
    let (body, host) = (form(&fields), console.host());
    let mut stream = TcpStream::connect(("127.0.0.1", console.port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(
        stream,
        "POST /points/{id}/download HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: http://{host}\r\n\
         Accept-Language: {}\r\nContent-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        console.cookie,
        console.language,
        body.len()
    )
    .unwrap();
    stream
}

/// Decodes a chunked body, and returns whether its last chunk was present.
fn unchunked(mut body: &[u8]) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    while let Some(end) = body.windows(2).position(|part| part == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return (bytes, true);
        }
        let Some(chunk) = body.get(end + 2..end + 2 + length) else { break };
        bytes.extend_from_slice(chunk);
        body = body.get(end + 4 + length..).unwrap_or_default();
    }
    (bytes, false)
}

fn page_of(id: &str, query: &str) -> String {
    format!("/points/{id}/files?{query}")
}

#[test]
fn files_are_browsed_searched_downloaded_and_copied() {
    let env = Env::new("point files");
    let id = backed_up(&env);
    let console = open(&env, &[]);
    console.get(&format!("/points/{id}")).assert_status(200).assert_has(&format!("/points/{id}/files"));
    let wizard = console.get(&format!("/restore/{id}/review?where=single")).assert_status(303);
    assert_eq!(wizard.header("location"), format!("/points/{id}/files"));

    // The operating system is shown first; folders are links, and so are symbolic links to folders.
    let page = console.get(&page_of(&id, "")).assert_status(200).assert_has("Test &lt;i&gt;Linux");
    let page = page.assert_has("12.0 MiB").assert_has(&format!("kvmb files ls -r {} {id} /", env.repo()));
    page.assert_has(&format!("/points/{id}/files?part=system&amp;path=%2Fetc"));
    let page = console.get(&page_of(&id, "part=vda&path=/etc/../etc/conf.d")).assert_status(200);
    let page = page.assert_has("2 in vda:/etc/conf.d").assert_has("a.conf").assert_has("[b].conf");
    page.assert_lacks("os-release").assert_has("aria-current=\"page\"><bdi class=\"brk\">conf.d");
    console.get(&page_of(&id, "path=/etc/fstab")).assert_status(200).assert_has("1 in /etc/fstab");
    // In HTTP/1.0, an aborted download would look complete.
    let token = console.get("/jobs").field("csrf");
    let body = form(&[("csrf", token.as_str()), ("part", "vda"), ("file", "%2Fbig")]);
    let mut old = TcpStream::connect(("127.0.0.1", console.port)).unwrap();
    write!(
        old,
        "POST /points/{id}/download HTTP/1.0\r\nHost: {0}\r\nCookie: {1}\r\nOrigin: http://{0}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {2}\r\n\r\n{body}",
        console.host(),
        console.cookie,
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).unwrap();
    Page::parse(&answer).unwrap().assert_status(422).assert_has("needs HTTP/1.1");
    let page = console.get(&page_of(&id, "path=/etc/none")).assert_status(200);
    page.assert_has("/etc/none does not exist").assert_lacks("This folder is empty.");

    // A search treats a text as a literal, and a pattern as a pattern.
    let page = console.get(&page_of(&id, "path=/etc&find=[b]")).assert_status(200);
    page.assert_has("1 found in /etc").assert_has("conf.d/[b].conf").assert_lacks("a.conf");
    console.get(&page_of(&id, "find=*.conf")).assert_status(200).assert_has("2 found in /");
    console.get(&page_of(&id, "find=nothing-like-this")).assert_status(200).assert_has("Nothing was found.");

    // A single file is sent unchanged, small or large; several files or a folder are sent as an archive.
    let small = download(&console, &id, &[("part", "vda"), ("file", "%2Fetc%2Fconf.d%2Fa.conf")]);
    assert_eq!((small.bytes.as_slice(), small.is_complete), (&b"a=1\n"[..], true));
    let page = small.page.assert_status(200);
    assert!(page.header("content-disposition").starts_with("attachment; filename=\"a.conf\""));
    assert_eq!(page.header("content-type"), "application/octet-stream");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    let large = download(&console, &id, &[("part", "system"), ("file", "%2Fbig")]);
    assert!(large.is_complete && large.bytes == noise(1, BIG), "{} bytes", large.bytes.len());
    let archive = download(&console, &id, &[("part", "vda"), ("f", "%2Fetc%2Fconf.d"), ("f", "%2Fetc%2Ffstab")]);
    assert!(archive.page.header("content-disposition").contains(&format!("\"{VM}-files.tar\"")));
    let unpacked = new_folder(&env, "unpacked");
    env.program("tar").args(["-x", "-C"]).arg(&unpacked).arg("-f").arg("-").stdin(&archive.bytes).run().assert_ok();
    let find = format!("cd '{}'; find . -type f | sort", unpacked.display());
    assert_eq!(env.sh(&find).run().stdout(), "./etc/conf.d/[b].conf\n./etc/conf.d/a.conf\n./etc/fstab\n");
    let whole = download(&console, &id, &[("part", "vda"), ("path", "%2Fetc%2Fconf.d"), ("whole", "1")]);
    assert!(whole.is_complete && whole.page.header("content-disposition").contains("conf.d.tar"));

    // A job copies the ticked files; existing files are kept.
    let (to, copy) = (new_folder(&env, "to"), format!("/points/{id}/copy-files"));
    let place = to.display().to_string();
    let fields = [("part", "vda"), ("f", "%2Fetc%2Fconf.d"), ("f", "%2Fetc%2Ffstab"), ("to", place.as_str())];
    console.run_job(&copy, &fields, "done").assert_has(&format!("files cp --to={place} -r"));
    assert_eq!(fs::read(to.join("conf.d/[b].conf")).unwrap(), b"b=2\n");
    fs::write(to.join("fstab"), "mine").unwrap();
    console.run_job(&copy, &[("part", "vda"), ("f", "%2Fetc%2Ffstab"), ("to", &place)], "failed");
    assert_eq!(fs::read(to.join("fstab")).unwrap(), b"mine");
    let fields = [("part", "vda"), ("f", "%2Fetc%2Ffstab"), ("to", place.as_str()), ("overwrite", "1")];
    console.run_job(&copy, &fields, "done");
    assert_eq!(fs::read(to.join("fstab")).unwrap(), b"# nothing\n");
    console.post(&copy, &[("part", "vda"), ("to", &place)]).assert_status(422).assert_has("Tick at least one");
    console.post(&copy, &[("part", "vda"), ("f", "%2Fetc")]).assert_status(422).assert_has("A folder is needed.");
    console.running.interrupt();
    console.running.wait().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn read_only_console_downloads_files_but_copies_nothing() {
    let env = Env::new("read-only files");
    let id = backed_up(&env);
    let mut console = open(&env, &["--read-only"]);
    console.language = "fr";
    let page = console.get(&page_of(&id, "path=/etc")).assert_status(200).assert_has("Télécharger en .tar");
    let page = page.assert_has("Systèmes de fichiers").assert_has("→ ").assert_has(">dossier<");
    page.assert_lacks("Copier dans ce dossier").assert_lacks(">folder<");
    let small = download(&console, &id, &[("part", "vda"), ("file", "%2Fetc%2Fconf.d%2Fa.conf")]);
    assert_eq!(small.bytes, b"a=1\n");
    let copy = format!("/points/{id}/copy-files");
    console.post(&copy, &[("part", "vda"), ("f", "%2Fetc"), ("to", "/nowhere")]).assert_status(403);
    let page = download(&console, &id, &[("part", "vda"), ("file", "%2Fetc%2Fnone")]).page.assert_status(422);
    page.assert_has("Non téléchargé").assert_has("/etc/none");
}

#[test]
fn hostile_guest_names_are_text_and_links_stay_in_the_guest() {
    let env = Env::new("hostile files");
    let id = backed_up(&env);
    let console = open(&env, &[]);
    let page = console.get(&page_of(&id, "part=vda&path=/hostile")).assert_status(200);
    let page = page.assert_lacks("<img").assert_lacks("<script>alert").assert_lacks("\u{202e}");
    let page = page.assert_has("&lt;img src=x onerror=alert(1)&gt;").assert_has("Download its folder.");
    // The page's values refer to exactly these files, whatever their names are.
    let values = page.fields("f");
    assert_eq!(values.len(), HOSTILE.len() + 1, "{values:?}");
    for value in values.iter().filter(|value| !value.contains("folder")) {
        let found = download(&console, &id, &[("part", "vda"), ("file", value)]);
        assert_eq!(found.bytes, b"text\n", "{value}: {:?}", found.page);
        let header = found.page.header("content-disposition");
        assert!(header.starts_with("attachment; filename=\"") && header.is_ascii(), "{header}");
        assert_eq!(found.page.header("set-cookie"), "");
    }
    let archive = download(&console, &id, &[("part", "vda"), ("tree", "%2Fhostile")]);
    assert!(archive.is_complete && archive.bytes.len() > 3000);

    // Symbolic links are resolved within the guest, and paths cannot leave it either.
    let up = download(&console, &id, &[("part", "vda"), ("file", "%2Fetc%2Fup")]);
    assert_eq!(up.bytes, b"# nothing\n");
    for path in ["/etc/outside", "/../../../../etc/hostname", "/etc/conf.d", "/etc/fstab/x"] {
        download(&console, &id, &[("part", "vda"), ("file", &encoded(path))]).page.assert_status(422);
    }
    for (part, path) in [("--to", "/etc"), ("vda", "etc"), ("vda", "--to=/"), ("vda", "/a\0b"), ("a/b", "/etc")] {
        let page = download(&console, &id, &[("part", part), ("f", &encoded(path))]).page;
        page.assert_status(422).assert_has("Tick at least one file");
    }
    for wrong in ["..%2f", "--help", &id[..8], &"0".repeat(64)] {
        download(&console, wrong, &[("part", "vda"), ("f", "%2Fetc")]).page.assert_status(404);
        console.get(&page_of(wrong, "")).assert_status(404);
    }

    // Only a form of this session can download.
    let path = format!("/points/{id}/download");
    let body = form(&[("part", "vda"), ("file", "%2Fetc%2Ffstab")]);
    console.post_raw(&path, &body, &format!("http://{}", console.host())).assert_status(403);
    console.post_raw(&path, &body, "http://evil.example.com").assert_status(403);
    console.get(&path).assert_status(405);
    let stranger = [("Host", console.host()), ("Origin", format!("http://{}", console.host()))];
    let kind = ("Content-Type", "application/x-www-form-urlencoded");
    let headers: Vec<(&str, &str)> =
        stranger.iter().map(|(name, value)| (*name, value.as_str())).chain([kind]).collect();
    console.request("POST", &path, &headers, &body).assert_status(401);
    console.request("GET", &page_of(&id, ""), &headers[..1], "").assert_status(401);
}

fn locks(env: &Env) -> usize {
    names_in(&Path::new(&env.repo()).join("locks")).len()
}

#[test]
fn abandoned_downloads_end_and_release_their_locks() {
    let env = Env::new("aborted download");
    let id = backed_up(&env);
    let console = open(&env, &[]);
    let mut streams: Vec<TcpStream> =
        (0..4).map(|_| ask(&console, &id, &[("part", "vda"), ("file", "%2Fbig")])).collect();
    // All of them are in progress, and a fifth is refused.
    for stream in &mut streams {
        stream.read_exact(&mut [0; 16]).unwrap();
    }
    wait_until("four commands read", LIMIT, || locks(&env) == 4);
    let page = download(&console, &id, &[("part", "vda"), ("file", "%2Fetc%2Ffstab")]).page.assert_status(422);
    page.assert_has("Several downloads are under way.");
    drop(streams);
    wait_until("they have ended", Duration::from_secs(60), || locks(&env) == 0);
    let again = || download(&console, &id, &[("part", "vda"), ("file", "%2Fetc%2Ffstab")]);
    wait_until("the next one may begin", LIMIT, || again().bytes == b"# nothing\n");
    console.running.interrupt();
    console.running.wait().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn download_of_damaged_data_never_looks_complete() {
    let env = Env::new("damaged download");
    let id = backed_up(&env);
    // Corrupt a chunk in the middle of the file.
    let data = Path::new(&env.repo()).join("data");
    let folders = fs::read_dir(data).unwrap().flatten();
    let packs = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten()).map(|file| file.path());
    let pack = packs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();
    let console = open(&env, &[]);
    let expected = noise(1, BIG);
    let found = download(&console, &id, &[("part", "vda"), ("file", "%2Fbig")]);
    assert!(!found.is_complete, "{} bytes", found.bytes.len());
    assert!(found.page.status == 422 || expected.starts_with(&found.bytes), "wrong bytes are never handed out");
    wait_until("the log says why", LIMIT, || console.running.stderr_so_far().contains("a download failed"));
}
