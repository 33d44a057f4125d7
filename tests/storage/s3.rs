//! Repositories in object storage: the contract of the storage on `rclone serve s3`, which always overwrites, and on
//! moto, which supports conditional requests.

// A test panics if a result is not what it expects.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::fast;
use crate::support::Env;
use crate::support::http_server::HttpServer;
use crate::support::proxy::{Proxy, Trouble};
use crate::support::scripted_http::{ScriptedRequest, answer, answer_on_a_port};
use kvmb::storage::http::{self, HttpContext, HttpCredentials, S3Keys};
use kvmb::storage::s3::{BucketLookup, S3Address, S3Options, S3Storage, ServerSideEncryption};
use kvmb::storage::sftp::Secret;
use kvmb::storage::testing::{FaultStorage, conformance, conformance_without_overwriting};
use kvmb::storage::{Error, FileKind, LimitStorage, RetryPolicy, RetryStorage, Storage};

/// The keys of the servers.
#[derive(Debug)]
struct Keys(&'static str, &'static str);

const RIGHT: Keys = Keys("keeper-key", "swordfish-secret");

impl HttpCredentials for Keys {
    fn login(&self, _user: Option<&str>) -> Result<Option<(String, Secret)>, String> {
        Ok(None)
    }

    fn s3_keys(&self) -> Result<Option<S3Keys>, String> {
        let (access_key, secret_key) = (self.0.to_owned(), Secret::new(self.1.to_owned()));
        Ok(Some(S3Keys { access_key, secret_key, session_token: None }))
    }
}

fn with(url: &str, keys: Keys, options: &S3Options) -> S3Storage {
    let context = HttpContext { credentials: Arc::new(keys), ..HttpContext::default() };
    S3Storage::new(S3Address::parse(url).unwrap(), options, &context).unwrap()
}

fn at(url: &str) -> S3Storage {
    with(url, RIGHT, &S3Options::default())
}

/// Returns 64 hexadecimal digits, with varying first bytes.
fn name(number: usize) -> String {
    format!("{:02x}{number:062x}", number % 256)
}

#[track_caller]
fn server_error<T: std::fmt::Debug>(result: kvmb::storage::Result<T>) -> http::Error {
    match result {
        Err(Error::Http { source, .. }) => *source,
        other => panic!("not an error of the server: {other:?}"),
    }
}

#[test]
fn s3_server_ignoring_conditions_conforms() {
    let env = Env::new("s3-rclone");
    let server = HttpServer::rclone_s3(&env, "server");
    // It occasionally fails with status 500 if folders are created and removed at the same moment.
    let retried = |below: Arc<dyn Storage>| RetryStorage::new(below, RetryPolicy::default(), Arc::default());
    // Concurrently, because each creation waits a second.
    std::thread::scope(|scope| {
        scope.spawn(|| conformance_without_overwriting(&retried(Arc::new(at(&server.s3_url("bucket/plain"))))));
        let faults = Arc::new(FaultStorage::new(Arc::new(at(&server.s3_url("other-bucket")))));
        conformance_without_overwriting(&retried(Arc::new(LimitStorage::new(faults, fast()))));
    });
}

#[test]
fn s3_server_honouring_conditions_conforms() {
    let env = Env::new("s3-moto");
    let server = HttpServer::moto(&env, "server");
    // It occasionally fails with status 500 if the same object is written twice at the same moment.
    let below = Arc::new(at(&server.s3_url("bucket/deep/er")));
    conformance(&RetryStorage::new(below, RetryPolicy::default(), Arc::default()));
    // A bucket in another region than the configured one, and the properties of each object.
    let elsewhere = S3Options { region: Some("eu-central-1".to_owned()), ..S3Options::default() };
    let storage = with(&server.s3_url("far-bucket"), RIGHT, &elsewhere);
    storage.create_layout().unwrap();
    storage.create(FileKind::Config, "", b"there").unwrap();
    assert!(matches!(storage.create(FileKind::Config, "", b"again"), Err(Error::Exists { .. })));
    let options = S3Options {
        storage_class: Some("STANDARD_IA".to_owned()),
        encryption: Some(ServerSideEncryption::Kms(Some("a-key".to_owned()))),
        lookup: BucketLookup::Path,
        ..S3Options::default()
    };
    let storage = with(&server.s3_url("far-bucket"), RIGHT, &options);
    storage.write(FileKind::Pack, &name(1), b"pack").unwrap();
    assert_eq!(storage.read(FileKind::Pack, &name(1)).unwrap(), b"pack");
}

#[test]
fn file_larger_than_a_part_is_uploaded_and_read_back() {
    let env = Env::new("s3-parts");
    let server = HttpServer::moto(&env, "server");
    let options = S3Options { part_bytes: 5 << 20, ..S3Options::default() };
    let storage = with(&server.s3_url("bucket/repo"), RIGHT, &options);
    storage.create_layout().unwrap();
    let long: Vec<u8> = (0..(12u32 << 20)).map(|at| (at / 1000) as u8).collect();
    storage.write(FileKind::Pack, &name(1), &long).unwrap();
    assert!(storage.read(FileKind::Pack, &name(1)).unwrap() == long);
    assert!(storage.read_range(FileKind::Pack, &name(1), 5 << 20, 3 << 20).unwrap() == long[5 << 20..8 << 20]);
    // An interrupted upload leaves no object under its name.
    let stopped = storage.write_gated(FileKind::Pack, &name(2), &long, &|bytes| bytes > 0);
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    assert!(storage.size(FileKind::Pack, &name(2)).unwrap_err().is_not_found());
    storage.remove(FileKind::Pack, &name(1)).unwrap();
}

#[test]
fn listing_and_bulk_removal_work_beyond_one_page() {
    let env = Env::new("s3-pages");
    let server = HttpServer::rclone_s3(&env, "server");
    // More than one page, as if a thousand packs had been written.
    let mut wanted: Vec<String> = (0..1100).map(name).collect();
    let data = server.folder().join("bucket/repo/data");
    for name in &wanted {
        let folder = data.join(&name[..2]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), "x").unwrap();
    }
    // Files that do not belong to a repository are not listed.
    fs::create_dir_all(data.join("zz/deeper")).unwrap();
    fs::write(data.join("zz/deeper/file"), "x").unwrap();
    fs::write(data.join("zz/file"), "x").unwrap();
    let found = at(&server.s3_url("bucket/repo")).list(FileKind::Pack).unwrap();
    let mut found: Vec<String> = found.into_iter().map(|file| file.name).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    // They are removed with two requests; missing objects are not an error.
    let storage = at(&server.s3_url("bucket/repo"));
    assert!(storage.removal_batch() > 1);
    storage.remove_many(FileKind::Pack, &found).unwrap();
    storage.remove_many(FileKind::Pack, &found[..2]).unwrap();
    assert_eq!(storage.list(FileKind::Pack).unwrap(), []);
    assert!(data.join("zz/file").exists(), "nothing else goes");
}

/// Starts a server that answers each request with a status and a text, and sends the requests through the channel.
fn answering(answer: fn(&str) -> (u16, &'static str)) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, requests) = mpsc::channel();
    // The thread ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut first, mut length) = (String::new(), 0);
            stream.read_line(&mut first).unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            stream.read_exact(&mut vec![0; length]).unwrap();
            let (status, text) = answer(&first);
            let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
            stream.get_mut().write_all((head + text).as_bytes()).unwrap();
            if asked.send(first).is_err() {
                return;
            }
        }
    });
    (port, requests)
}

#[test]
fn unsupported_bulk_removal_is_tried_only_once() {
    let (port, requests) = answering(|first| if first.starts_with("POST") { (501, "") } else { (204, "") });
    let storage = at(&format!("s3:http://127.0.0.1:{port}/bucket"));
    let names: Vec<String> = (0..9).map(name).collect();
    storage.remove_many(FileKind::Pack, &names).unwrap();
    assert_eq!(storage.removal_batch(), 1);
    storage.remove_many(FileKind::Pack, &names[..1]).unwrap();
    let asked: Vec<String> = requests.try_iter().collect();
    let of = |method: &str| asked.iter().filter(|first| first.starts_with(method)).count();
    assert_eq!((of("POST"), of("DELETE")), (1, 10), "{asked:#?}");
}

#[test]
fn failed_file_of_a_bulk_removal_is_reported_by_name() {
    let (port, _requests) = answering(|_| {
        (
            200,
            "<DeleteResult><Error><Key>data/ab/abcd</Key><Code>NoSuchKey</Code></Error><Error><Key>data/ef/ef01</Key>\
             <Code>AccessDenied</Code><Message>not you</Message></Error></DeleteResult>",
        )
    });
    let storage = at(&format!("s3:http://127.0.0.1:{port}/bucket"));
    let error = server_error(storage.remove_many(FileKind::Pack, &[name(1), name(2)]));
    assert!(matches!(error, http::Error::Denied { .. }), "{error:?}");
    assert!(error.to_string().contains("ef01") && error.to_string().contains("not you"), "{error}");
    assert!(storage.removal_batch() > 1, "it can");
}

#[test]
fn only_the_right_keys_open_a_bucket() {
    let env = Env::new("s3-keys");
    let server = HttpServer::rclone_s3(&env, "server");
    let url = server.s3_url("bucket");
    at(&url).create_layout().unwrap();
    for wrong in [Keys("keeper-key", "herring"), Keys("nobody", "swordfish-secret")] {
        let error = server_error(with(&url, wrong, &S3Options::default()).list(FileKind::Key));
        assert!(!error.is_transient() && !error.to_string().contains("herring"), "{error:?}");
        assert!(matches!(error, http::Error::Keys { .. } | http::Error::Denied { .. }), "{error:?}");
    }
    let nobody = S3Storage::new(S3Address::parse(&url).unwrap(), &S3Options::default(), &HttpContext::default());
    let error = server_error(nobody.unwrap().list(FileKind::Key));
    assert!(matches!(error, http::Error::NoKeys { .. }), "{error:?}");
    // A missing bucket is not an empty one.
    let missing = server_error(at(&server.s3_url("no-such-bucket")).list(FileKind::Key));
    assert!(matches!(missing, http::Error::Refused { status: 404, .. }) && !missing.is_transient(), "{missing:?}");
}

#[test]
fn cut_or_corrupted_uploads_are_sent_again() {
    let env = Env::new("s3-trouble");
    let server = HttpServer::rclone_s3(&env, "server");
    let proxy = Proxy::start(server.port(), Duration::ZERO);
    // The signature covers the port of the connection.
    let url = format!("s3:http://127.0.0.1:{}/bucket/repo", proxy.port());
    let storage = at(&url);
    storage.create_layout().unwrap();
    let contents = vec![3; 2 << 20];
    let patient = RetryStorage::new(Arc::new(storage), RetryPolicy::default(), Arc::default());
    proxy.order(&[Trouble::Cut, Trouble::Cut], 1000..(1 << 20), 3);
    patient.write(FileKind::Pack, &name(1), &contents).unwrap();
    assert!(patient.read(FileKind::Pack, &name(1)).unwrap() == contents);
    assert!(proxy.happened() >= 1, "{}", proxy.happened());
    // Within the body, whose SHA-256 the signature covers too.
    proxy.order(&[Trouble::Flip], (1 << 20)..(1 << 20) + 1000, 4);
    let changed = server_error(at(&url).write(FileKind::Pack, &name(2), &contents));
    assert!(matches!(changed, http::Error::Corrupted { .. }), "{changed:?}");
    proxy.order(&[Trouble::Flip], (1 << 20)..(1 << 20) + 1000, 5);
    let patient = RetryStorage::new(Arc::new(at(&url)), RetryPolicy::default(), Arc::default());
    let before = proxy.happened();
    patient.write(FileKind::Pack, &name(3), &contents).unwrap();
    assert!(proxy.happened() > before, "{before}");
    assert!(patient.read(FileKind::Pack, &name(3)).unwrap() == contents);
}

/// Returns a bucket of a scripted server.
fn scripted(answer: impl FnMut(&ScriptedRequest) -> String + Send + 'static) -> S3Storage {
    at(&format!("s3:http://127.0.0.1:{}/bucket/kvm", answer_on_a_port(answer)))
}

fn complaint(status: &str, code: &str, message: &str) -> String {
    answer(status, "", &format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>"))
}

#[test]
fn keys_limited_to_one_folder_need_no_bucket_access() {
    let denied = || complaint("403 Forbidden", "AccessDenied", "Access Denied");
    let storage = scripted(move |request| match request.line.as_str() {
        "GET /bucket?list-type=2&prefix=kvm%2Fkeys%2F HTTP/1.1" => answer("200 OK", "", "<ListBucketResult/>"),
        "HEAD /bucket HTTP/1.1" => answer("403 Forbidden", "", ""),
        _ => denied(),
    });
    storage.create_layout().unwrap();
    // Only the response about the folder counts.
    let storage = scripted(move |request| match request.line.starts_with("HEAD ") {
        true => answer("403 Forbidden", "", ""),
        false => denied(),
    });
    let error = server_error(storage.create_layout());
    assert!(matches!(error, http::Error::Denied { .. }) && error.to_string().contains("Access Denied"), "{error:?}");
}

#[test]
fn empty_pages_of_a_listing_are_skipped_unless_they_repeat() {
    let page = |key: &str, next: &str| {
        let file =
            if key.is_empty() { String::new() } else { format!("<Contents><Key>{key}</Key><Size>5</Size></Contents>") };
        let next = match next {
            "" => String::new(),
            next => format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>"),
        };
        answer("200 OK", "", &format!("<ListBucketResult>{file}{next}</ListBucketResult>"))
    };
    // Removed versions of locks fill whole pages.
    let storage =
        scripted(move |request| match request.line.split("continuation-token=").nth(1).map(|token| &token[..1]) {
            None => page("", "1"),
            Some("1") => page("kvm/locks/a", "2"),
            Some("2") => page("", "3"),
            Some("3") => page("", "4"),
            _ => page("kvm/locks/b", ""),
        });
    let names: Vec<String> = storage.list(FileKind::Lock).unwrap().into_iter().map(|file| file.name).collect();
    assert_eq!(names, ["a", "b"]);
    let error = server_error(scripted(move |_| page("kvm/locks/a", "1")).list(FileKind::Lock));
    assert!(matches!(error, http::Error::Protocol { .. }) && error.to_string().contains("does not end"), "{error:?}");
}

#[test]
fn wrong_clock_is_detected_from_a_refusal_without_a_body() {
    let refused_at = |date: String| {
        let storage = scripted(move |_| answer("403 Forbidden", &format!("Date: {date}\r\n"), ""));
        server_error(storage.list(FileKind::Config).map(drop))
    };
    let yesterday = chrono::Utc::now() - chrono::TimeDelta::days(1);
    let error = refused_at(yesterday.to_rfc2822());
    assert!(matches!(error, http::Error::Clock { .. }), "{error:?}");
    let error = refused_at(chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string());
    assert!(matches!(error, http::Error::Denied { .. }), "{error:?}");
}

#[test]
fn refused_checksum_and_condition_headers_are_left_out() {
    let refused =
        |header: &str| complaint("400 Bad Request", "InvalidArgument", &format!("Unsupported header '{header}'"));
    let uploads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&uploads);
    let mut kept = false;
    let storage = scripted(move |request| match request.line.split(' ').next() {
        Some("PUT") => {
            count.fetch_add(1, Ordering::Relaxed);
            if request.has_header("x-amz-checksum-") {
                return refused("x-amz-checksum-sha256");
            }
            if request.has_header("if-none-match") {
                return refused("If-None-Match");
            }
            kept = true;
            answer("200 OK", "", "")
        }
        Some("GET") => answer("200 OK", "", "contents"),
        _ => answer(if kept { "200 OK" } else { "404 Not Found" }, "", ""),
    });
    storage.create(FileKind::Config, "", b"contents").unwrap();
    assert_eq!(uploads.load(Ordering::Relaxed), 3);
    for number in 4..6 {
        storage.write(FileKind::Pack, &name(1), b"contents").unwrap();
        assert_eq!(uploads.load(Ordering::Relaxed), number);
    }
}
