//! Codes and hints of storage errors.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use crate::cli::failure::code::Code;
use crate::cli::failure::explanation::{Explanation, hint, of_io, quoted};
use crate::storage::sftp::{self, ProxyProblem, SftpAddress};
use crate::storage::{self, FileAction, http};

pub(super) fn of_storage(error: &storage::Error) -> Explanation {
    use storage::Error;
    match error {
        Error::NoSpace { .. } => {
            (Code::NoSpace, hint("free some space for the repository; existing points are intact"))
        }
        Error::Io { action: FileAction::Find, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            (Code::NotFound, hint("the folder of the repository is missing; check that its file system is mounted"))
        }
        // Every repository has this folder.
        Error::Io { action: FileAction::List, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            (Code::Damage, hint("a part of the repository is missing; check that it was mounted or copied completely"))
        }
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotADirectory => {
            (Code::Usage, hint("use a folder as the repository, for example -r /srv/backup/kvmb"))
        }
        // The server refuses the login's user; the local user does not matter.
        Error::Io { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied && source.raw_os_error().is_none() =>
        {
            (Code::Permission, hint("give the user of the login access to this folder on the server"))
        }
        Error::Io { source, .. } => of_io(source),
        Error::TooShort { .. } | Error::TooLong { .. } => {
            (Code::Damage, hint("run 'kvmb verify --all' to see which points are affected"))
        }
        Error::Server { url, source } => of_server(url, source),
        Error::Http { source, .. } => of_http(source),
        Error::GaveUp { source, .. } => match &**source {
            Error::Server { url, source } => of_server(url, source),
            Error::Http { source, .. } => of_http(source),
            Error::BadUrl { .. }
            | Error::NotFound { .. }
            | Error::Exists { .. }
            | Error::TooShort { .. }
            | Error::TooLong { .. }
            | Error::NoSpace { .. }
            | Error::Io { .. }
            | Error::GaveUp { .. }
            | Error::Interrupted => (
                Code::Failed,
                hint("run the command again when the connection is back; data that was stored is not sent again"),
            ),
        },
        Error::BadUrl { .. } | Error::NotFound { .. } | Error::Exists { .. } | Error::Interrupted => {
            (Code::Failed, None)
        }
    }
}

/// Returns the command that creates the missing repository.
pub(super) fn make_repository(url: &str) -> Cow<'static, str> {
    let Some(quoted) = quoted(url) else { return "check the address".into() };
    // An empty mount point looks like a folder without a repository; creating one there would hide the error.
    let check = match url.starts_with('/') {
        true => "check the address and whether its file system is mounted",
        false => "check the address",
    };
    let create = format!("{check}, or create a repository there with 'kvmb init -r {quoted}'");
    match SftpAddress::parse(url).ok().filter(SftpAddress::is_relative) {
        Some(_) => format!(
            "{create}; this path is relative to the login folder; an absolute path begins with two slashes: \
             sftp://user@host//folder"
        )
        .into(),
        None => create.into(),
    }
}

fn of_server(url: &str, error: &sftp::Error) -> Explanation {
    use sftp::Error;
    match error {
        Error::SshConfig { .. } => (Code::Usage, None),
        Error::Resolve { .. } => {
            (Code::Unreachable, hint("check the host name; aliases from ~/.ssh/config can be used"))
        }
        Error::Unreachable { .. } | Error::Silent { .. } => {
            (Code::Unreachable, hint("check that the server is up, the SSH port is right and no firewall blocks it"))
        }
        Error::Stuck { .. } => (
            Code::Unreachable,
            hint("check the disks of the server; ssh.progress_timeout in the configuration sets how long to wait"),
        ),
        Error::Handshake { .. } => (Code::Unreachable, hint("check that an SSH server listens on this port")),
        Error::TurnedAway { .. } => (
            Code::Unreachable,
            hint("check MaxStartups, PerSourceMaxStartups and PerSourcePenalties in sshd_config on the server"),
        ),
        Error::Lost { .. } => {
            (Code::Unreachable, hint("run the command again; data that was stored is not sent again"))
        }
        Error::Proxy { problem, .. } => of_ssh_proxy(url, *problem),
        Error::KnownHosts { source, .. } => of_io(source),
        Error::HostKeyUnknown { fingerprint, .. } => (
            Code::HostKey,
            quoted(url).map(|url| {
                format!(
                    "compare it with the server's key ('ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' there); if \
                     they match: kvmb remote test -r {url} --accept-host-key {fingerprint}"
                )
                .into()
            }),
        ),
        Error::HostKeyChanged { name, path, .. } => (Code::HostKey, remove_key(name, path)),
        Error::HostKeyRevoked { .. } => (Code::HostKey, hint("do not connect; ask the administrator of the server")),
        Error::Secret(_) => (Code::Usage, None),
        Error::Login { .. } => (
            Code::Login,
            quoted(url).map(|url| {
                format!(
                    "add a key of this host with 'kvmb remote setup -r {url}', or specify the password with \
                     --ssh-password-file FILE"
                )
                .into()
            }),
        ),
        Error::NoSftp { .. } => {
            (Code::Unsupported, hint("add this line to sshd_config on the server: Subsystem sftp internal-sftp"))
        }
    }
}

/// Explains why an intermediate host, or another proxy, does not lead to a server.
fn of_ssh_proxy(url: &str, problem: ProxyProblem) -> Explanation {
    // `ssh` takes the same way and prints everything that it has to say.
    let by_hand = SftpAddress::parse(url).ok().and_then(|address| {
        let user = address.user.map(|user| format!("{user}@")).unwrap_or_default();
        let port = address.port.map(|port| format!("-p {port} ")).unwrap_or_default();
        Some(format!("ssh {port}{}", quoted(&format!("{user}{}", address.host))?))
    });
    match problem {
        ProxyProblem::HostKey => (
            Code::HostKey,
            by_hand.map(|ssh| {
                format!("check the host key of the intermediate host with '{ssh}', as the same user").into()
            }),
        ),
        ProxyProblem::Login => (
            Code::Login,
            by_hand.map(|ssh| {
                format!(
                    "use a key that the intermediate host accepts without a question, and test it with '{ssh} -o \
                     BatchMode=yes'"
                )
                .into()
            }),
        ),
        ProxyProblem::Forwarding => {
            (Code::Unreachable, hint("check AllowTcpForwarding and PermitOpen in sshd_config on the intermediate host"))
        }
        ProxyProblem::Name => {
            (Code::Unreachable, hint("check the intermediate host in ~/.ssh/config (ProxyJump, ProxyCommand)"))
        }
    }
}

/// Explains errors of an HTTP server.
fn of_http(error: &http::Error) -> Explanation {
    use http::{CertificateFlaw, Error};
    match error {
        Error::Secret(_) => (Code::Usage, None),
        Error::File { source, .. } => of_io(source),
        Error::BadFile { .. } => (Code::Usage, hint("specify a file in PEM format")),
        Error::BadProxy { .. } => {
            (Code::Usage, hint("set HTTPS_PROXY=http://HOST:PORT, or add the server's name to NO_PROXY"))
        }
        Error::Proxy { status: Some(407), .. } => {
            (Code::Unreachable, hint("the proxy requires a login: set HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"))
        }
        Error::Proxy { .. } => (
            Code::Unreachable,
            hint("check HTTPS_PROXY (without TLS, HTTP_PROXY), or add the server's name to NO_PROXY"),
        ),
        Error::Resolve { .. } => (Code::Unreachable, hint("check the host name in the address of the repository")),
        Error::Unreachable { .. } | Error::Silent { .. } => {
            (Code::Unreachable, hint("check that the server is up, the port is right and no firewall blocks it"))
        }
        Error::Lost { .. } | Error::Corrupted { .. } => {
            (Code::Unreachable, hint("run the command again; data that was stored is not sent again"))
        }
        Error::Certificate { flaw: CertificateFlaw::OutOfDate, .. } => {
            (Code::HostKey, hint("renew the certificate of the server; if it is valid, check the clock of this host"))
        }
        Error::Certificate { flaw: CertificateFlaw::OtherName, .. } => (
            Code::HostKey,
            hint("use a name of the server that its certificate contains in the address of the repository"),
        ),
        Error::Certificate { flaw: CertificateFlaw::Untrusted, .. } => (
            Code::HostKey,
            hint("if the server uses a certificate authority of your own, specify its certificate with --cacert FILE"),
        ),
        Error::ClientCertificate { .. } => {
            (Code::Login, hint("specify a certificate that the server accepts, with its key: --tls-client-cert FILE"))
        }
        Error::Tls { .. } => {
            (Code::Unreachable, hint("check the port, and whether the address begins with http or https"))
        }
        Error::Protocol { .. } => {
            (Code::Unsupported, hint("check the address: the server may be of another kind, or the path may be wrong"))
        }
        Error::Login { .. } => (
            Code::Login,
            hint(
                "set RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD, or http.user and http.password_file in the \
                 configuration",
            ),
        ),
        Error::NoKeys { .. } | Error::Keys { .. } => (
            Code::Login,
            hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or s3.credentials_file in the configuration"),
        ),
        Error::Clock { .. } => (Code::Login, hint("synchronize both clocks (NTP)")),
        Error::NoObjectLock { .. } => (
            Code::Unsupported,
            hint(
                "enable versioning and Object Lock for the bucket, or choose a bucket that does not exist yet: \
                 'kvmb init --lock-for 30d' creates it with Object Lock",
            ),
        ),
        Error::Denied { .. } => (
            Code::Permission,
            hint(
                "an append-only server permits new files only; remove old points on the server, or use another account",
            ),
        ),
        Error::TooLarge { .. } => {
            (Code::Failed, hint("raise the limit of the reverse proxy to 256 MiB (nginx: client_max_body_size 256m)"))
        }
        Error::Refused { status: 300..400, .. } => (
            Code::Failed,
            hint("check the address of the repository and the region (AWS_REGION): the server redirects elsewhere"),
        ),
        Error::NoFolder { .. } => (
            Code::Unreachable,
            hint("check the log of the server and of a proxy before it, then run the command again"),
        ),
        Error::Refused { status: 404, .. } => {
            (Code::NoRepository, hint("check the address, or create a repository there with 'kvmb init -r REPO'"))
        }
        Error::Refused { .. } if error.is_transient() => {
            (Code::Unreachable, hint("check the log of the server, and run the command again"))
        }
        Error::Refused { .. } => (Code::Failed, hint("check the log of the server")),
    }
}

fn remove_key(name: &str, known_hosts: &Path) -> Option<Cow<'static, str>> {
    let (name, path) = (quoted(name)?, quoted(&known_hosts.to_string_lossy())?);
    hint(format!("ask the administrator of the server; only if the change is expected: ssh-keygen -R {name} -f {path}"))
}
