//! Connects to a server and verifies its host key.

use super::known_hosts::{self, HostKeyStatus, KnownKeys};
use super::ssh_target::Family;
use super::{Connection, Error, Result, ShownKey, SshContext, SshTarget, SshTimeouts};
use crate::storage::dial::connect_to_first;
use ssh_key::PublicKey;
use ssh2::MethodType;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Ciphers, cheapest first. libssh2 passes AES to OpenSSL 16 bytes at a time, but ChaCha20 a whole packet, so ChaCha20
/// is faster even on processors with AES instructions. Processor time for 268 MB, both ends, EPYC: chacha20-poly1305
/// 2.4 s, aes128-gcm 2.9 s, aes128-ctr with hmac-sha2-256-etm 3.1 s, with hmac-sha2-512-etm 3.2 s. `ssh` prefers
/// ChaCha20, too.
const CIPHERS: &str =
    "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr,aes256-ctr";

/// MACs for the ciphers that need one; the `etm` variants first.
const MACS: &str = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha2-512";

/// Key exchange methods, fastest first, none with SHA-1.
const KEY_EXCHANGES: &str = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384,\
                             ecdh-sha2-nistp521,diffie-hellman-group-exchange-sha256,diffie-hellman-group16-sha512,\
                             diffie-hellman-group14-sha256";

/// Connects and verifies the host key. The connection is not yet authenticated.
pub(crate) fn connect(ssh_target: &SshTarget, ssh_context: &SshContext) -> Result<Connection> {
    let known = KnownKeys::read(ssh_target)?;
    let connection = match &ssh_target.proxy {
        Some(proxy) => {
            let unreachable = |source| Error::Unreachable { server: ssh_target.server(), source };
            let (socket, process) = proxy.start(&ssh_target.host, ssh_target.port).map_err(unreachable)?;
            Connection::through(socket, process, ssh_target, ssh_context)?
        }
        None => Connection::new(dial(ssh_target, ssh_context)?, ssh_target, ssh_context)?,
    };
    let handshake =
        |error: ssh2::Error| Error::Handshake { server: ssh_target.server(), reason: error.message().to_owned() };
    let session = connection.session();
    for (method, preferred) in [
        (MethodType::HostKey, known.methods().as_str()),
        (MethodType::Kex, KEY_EXCHANGES),
        (MethodType::CryptCs, CIPHERS),
        (MethodType::CryptSc, CIPHERS),
        (MethodType::MacCs, MACS),
        (MethodType::MacSc, MACS),
    ] {
        session.method_pref(method, preferred).map_err(handshake)?;
    }
    connection.await_greeting()?;
    let mut shaking = session.clone();
    connection.step(|| shaking.handshake())?.map_err(handshake)?;
    check_host_key(&connection, &known, ssh_target, ssh_context)?;
    Ok(connection)
}

fn check_host_key(
    connection: &Connection,
    known: &KnownKeys,
    ssh_target: &SshTarget,
    ssh_context: &SshContext,
) -> Result<()> {
    let session = connection.session();
    let no_key = |reason: &str| Error::Handshake { server: ssh_target.server(), reason: reason.to_owned() };
    let (blob, _) = session.host_key().ok_or_else(|| no_key("the server showed no host key"))?;
    let key = PublicKey::from_bytes(blob).map_err(|error| no_key(&format!("its host key is unreadable: {error}")))?;
    let (server, algorithm, fingerprint) =
        (ssh_target.server(), known_hosts::key_type(&key), known_hosts::fingerprint(&key));
    match known.judge(&key) {
        HostKeyStatus::Right => Ok(()),
        HostKeyStatus::Revoked { path, line } => {
            Err(Error::HostKeyRevoked { server, algorithm, fingerprint, path, line })
        }
        HostKeyStatus::Changed { path, line } => {
            let name = ssh_target.known_as.clone();
            Err(Error::HostKeyChanged { server, name, algorithm, fingerprint, path, line })
        }
        HostKeyStatus::Unknown { certified } => {
            let unknown = Error::HostKeyUnknown {
                server: server.clone(),
                algorithm: algorithm.clone(),
                fingerprint: fingerprint.clone(),
                certified,
            };
            let Some(file) = ssh_target.user_known_hosts.first() else {
                return Err(unknown);
            };
            let shown = ShownKey { server, algorithm, fingerprint, known_hosts: file.clone() };
            if !ssh_context.credentials.accepts(&shown).map_err(Error::Secret)? {
                return Err(unknown);
            }
            known_hosts::append(file, &ssh_target.known_as, ssh_target.hash_known_hosts, &key)
        }
    }
}

/// Opens a TCP connection to the first of the host's addresses that answers.
///
/// The resolver cannot be interrupted, so it runs in another thread, which is abandoned if it hangs.
fn dial(ssh_target: &SshTarget, ssh_context: &SshContext) -> Result<TcpStream> {
    let limit = ssh_target.timeouts.connect;
    let (sender, receiver) = mpsc::channel();
    let (dialled, stop) = (ssh_target.clone(), Arc::clone(&ssh_context.stop));
    let started = thread::Builder::new().spawn(move || {
        // Sending fails if the caller has already given up.
        let _ = sender.send(dial_blocking(&dialled, &stop));
    });
    started.map_err(|source| Error::Unreachable { server: ssh_target.server(), source })?;
    let begun = Instant::now();
    loop {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => {
                let source = io::Error::other("the thread that connects is gone");
                return Err(Error::Unreachable { server: ssh_target.server(), source });
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let ending = ssh_context.stop.load(Ordering::Relaxed) && begun.elapsed() >= ssh_target.timeouts.ending;
        // The resolver has limits of its own.
        if ending || begun.elapsed() >= limit * 4 {
            return Err(Error::Unreachable { server: ssh_target.server(), source: ErrorKind::TimedOut.into() });
        }
    }
}

fn dial_blocking(ssh_target: &SshTarget, stop: &AtomicBool) -> Result<TcpStream> {
    let resolve = |source| Error::Resolve { host: ssh_target.host.clone(), source };
    let unreachable = |source| Error::Unreachable { server: ssh_target.server(), source };
    let fits = |address: &SocketAddr| match ssh_target.family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    };
    let addresses = (ssh_target.host.as_str(), ssh_target.port).to_socket_addrs().map_err(resolve)?;
    let addresses: Vec<SocketAddr> = addresses.filter(fits).collect();
    if addresses.is_empty() {
        let words = "it has no address of the requested family";
        return Err(unreachable(io::Error::new(ErrorKind::AddrNotAvailable, words)));
    }
    let SshTimeouts { connect, ending, .. } = ssh_target.timeouts;
    connect_to_first(&addresses, connect, stop, ending).map_err(unreachable)
}
