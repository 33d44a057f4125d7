//! From an address to a server: what `~/.ssh/config` and `/etc/ssh/ssh_config` make of it, as `ssh` users expect.
//!
//! The address wins over the user's file, that over the system's; within them the first value counts, and identity files
//! add up. `Match all` is read as `Host *`; other `Match` blocks are left out, with a warning, for they may run commands.
//! What would lead the connection elsewhere (`ProxyJump`, `ProxyCommand`) is refused rather than overlooked.

use super::{Error, Result, SftpAddress, SshContext, SshTimeouts};
use crate::atomic_file;
use ssh2_config::{HostParams, ParseRule, SshConfig};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The keys that `ssh` tries when none is configured.
const DEFAULT_IDENTITIES: [&str; 3] = ["id_rsa", "id_ecdsa", "id_ed25519"];

/// How to reach one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshTarget {
    /// The name or address to connect to.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The account.
    pub user: String,
    /// The name in known_hosts: `host`, or `[host]:port`.
    pub known_as: String,
    /// The user's known_hosts files; a new key is added to the first.
    pub user_known_hosts: Vec<PathBuf>,
    /// The system's.
    pub system_known_hosts: Vec<PathBuf>,
    /// Key files, in the order in which they are tried.
    pub identities: Vec<PathBuf>,
    /// Whether only these keys may be used, and not the agent's others.
    pub identities_only: bool,
    /// The agent's socket.
    pub agent_socket: Option<PathBuf>,
    /// Ways to log in that the user turned off: `publickey`, `password`, `keyboard-interactive`.
    pub forbidden: Vec<&'static str>,
    /// `ipv4`, `ipv6` or both.
    pub family: Family,
    /// Whether the name of a server is hashed where its key is noted.
    pub hash_known_hosts: bool,
    /// How long to wait for what.
    pub patience: SshTimeouts,
}

/// Which addresses of a name to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// All.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl SshTarget {
    /// Reads the configuration files.
    pub fn find(target: &SftpAddress, access: &SshContext) -> Result<SshTarget> {
        let user_file = access.home.as_ref().map(|home| home.join(".ssh/config"));
        let system_file = access.system_folder.join("ssh_config");
        let mut options = HostOptions::default();
        for file in user_file.iter().chain([&system_file]) {
            if let Some(params) = read_config(file, &target.host, access)? {
                options.add(file, params);
            }
        }
        options.route(target, access)
    }

    /// The same way, but with this key and nothing else.
    pub fn only_with(&self, key: &Path) -> SshTarget {
        SshTarget {
            identities: vec![key.to_owned()],
            identities_only: true,
            agent_socket: None,
            forbidden: vec!["keyboard-interactive", "password"],
            ..self.clone()
        }
    }

    /// How the server is named in messages.
    pub fn server(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// How the account is named in questions.
    pub fn account(&self) -> String {
        format!("{}@{}", self.user, self.host)
    }
}

/// What the files say about one host; the first value of each counts.
#[derive(Debug, Default)]
struct HostOptions {
    host_name: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    identities: Vec<PathBuf>,
    public_key_allowed: Option<bool>,
    proxy_jump: Option<(PathBuf, String)>,
    connect_timeout: Option<Duration>,
    server_alive_interval: Option<Duration>,
    /// Other options in lower case, with the file that they are from.
    others: HashMap<String, (PathBuf, Vec<String>)>,
}

impl HostOptions {
    fn add(&mut self, file: &Path, params: HostParams) {
        self.host_name = self.host_name.take().or(params.host_name);
        self.port = self.port.or(params.port);
        self.user = self.user.take().or(params.user);
        self.identities.extend(params.identity_file.unwrap_or_default());
        self.public_key_allowed = self.public_key_allowed.or(params.pubkey_authentication);
        self.connect_timeout = self.connect_timeout.or(params.connect_timeout);
        self.server_alive_interval = self.server_alive_interval.or(params.server_alive_interval);
        if self.proxy_jump.is_none() {
            self.proxy_jump = params.proxy_jump.map(|jump| (file.to_owned(), jump.join(",")));
        }
        for (name, values) in params.unsupported_fields.into_iter().chain(params.ignored_fields) {
            self.others.entry(name.to_lowercase()).or_insert_with(|| (file.to_owned(), values));
        }
    }

    fn word(&self, name: &str) -> Option<String> {
        self.others.get(name)?.1.first().map(|word| word.to_lowercase())
    }

    fn route(self, target: &SftpAddress, access: &SshContext) -> Result<SshTarget> {
        self.refuse_detours()?;
        let user = target.user.clone().or_else(|| self.user.clone()).unwrap_or_else(|| access.user.clone());
        let port = target.port.or(self.port).unwrap_or(22);
        let tokens = |host: &str| Tokens {
            home: access.home.clone(),
            local_user: access.user.clone(),
            host: host.to_owned(),
            original: target.host.clone(),
            user: user.clone(),
            port,
        };
        let host = match &self.host_name {
            // Only %h and %% mean something here.
            Some(name) => tokens(&target.host).expand(name),
            None => target.host.clone(),
        };
        let tokens = tokens(&host);
        // An alias stands alone, whatever the port: so does ssh have it.
        let alias = self.others.get("hostkeyalias").and_then(|(_, values)| values.first());
        let known_as = match alias {
            Some(alias) => alias.to_lowercase(),
            None if port == 22 => host.to_lowercase(),
            None => format!("[{}]:{port}", host.to_lowercase()),
        };

        let files = |option: &str, defaults: [PathBuf; 2]| -> Vec<PathBuf> {
            match self.others.get(option) {
                Some((_, values)) if values.iter().any(|value| value == "none") => Vec::new(),
                Some((_, values)) => values.iter().map(|value| tokens.path(value)).collect(),
                None => defaults.to_vec(),
            }
        };
        let ssh = access.home.as_ref().map(|home| home.join(".ssh"));
        let user_known_hosts = match &ssh {
            Some(ssh) => files("userknownhostsfile", ["known_hosts", "known_hosts2"].map(|name| ssh.join(name))),
            None => Vec::new(),
        };
        let system = ["ssh_known_hosts", "ssh_known_hosts2"].map(|name| access.system_folder.join(name));
        let system_known_hosts = files("globalknownhostsfile", system);

        let is_none = |path: &PathBuf| path.file_name().is_some_and(|name| name == "none");
        let mut identities: Vec<PathBuf> = match self.identities.is_empty() {
            true => ssh.iter().flat_map(|ssh| DEFAULT_IDENTITIES.map(|name| ssh.join(name))).collect(),
            false => {
                let named = self.identities.iter().filter(|path| !is_none(path));
                named.map(|path| tokens.path(&path.to_string_lossy())).collect()
            }
        };
        // The key that was made for this very purpose saves the others from being tried in vain.
        if let Some(own) = &access.own_key {
            identities.insert(0, own.clone());
        }

        let agent_socket = match self.others.get("identityagent").and_then(|(_, values)| values.first()) {
            Some(none) if none.eq_ignore_ascii_case("none") => None,
            Some(word) if word == "SSH_AUTH_SOCK" => access.agent_socket.clone(),
            Some(path) => Some(tokens.path(path)),
            None => access.agent_socket.clone(),
        };
        let mut forbidden = Vec::new();
        if self.public_key_allowed == Some(false) {
            forbidden.push("publickey");
        }
        for (option, way) in
            [("passwordauthentication", "password"), ("kbdinteractiveauthentication", "keyboard-interactive")]
        {
            if self.word(option).as_deref() == Some("no") {
                forbidden.push(way);
            }
        }
        let family = match self.word("addressfamily").as_deref() {
            Some("inet") => Family::V4,
            Some("inet6") => Family::V6,
            _ => Family::Any,
        };
        Ok(SshTarget {
            host,
            port,
            user,
            known_as,
            user_known_hosts,
            system_known_hosts,
            identities,
            identities_only: self.word("identitiesonly").as_deref() == Some("yes"),
            agent_socket,
            forbidden,
            family,
            hash_known_hosts: self.word("hashknownhosts").as_deref() == Some("yes"),
            patience: self.patience(access.patience),
        })
    }

    /// A server is given up when so many keep-alives in a row came to nothing; 0 turns that off for ssh, but not here, where
    /// nobody may watch.
    fn patience(&self, usual: SshTimeouts) -> SshTimeouts {
        let mut patience = usual;
        let set = |time: Option<Duration>| time.filter(|time| !time.is_zero());
        if let Some(connect) = set(self.connect_timeout) {
            patience.connect = connect;
        }
        if let Some(interval) = set(self.server_alive_interval) {
            let count = self.word("serveralivecountmax").and_then(|count| count.parse().ok()).unwrap_or(3);
            patience.keep_alive = interval;
            patience.silence = interval.saturating_mul(u32::max(count, 1));
        }
        patience
    }

    fn refuse_detours(&self) -> Result<()> {
        let refused = |file: &Path, reason: String| Err(Error::SshConfig { path: file.to_owned(), reason });
        if let Some((file, jump)) = &self.proxy_jump
            && jump != "none"
        {
            return refused(file, format!("kvmb connects directly and knows no ProxyJump ({jump})"));
        }
        if let Some((file, command)) = self.others.get("proxycommand")
            && command.first().is_none_or(|first| first != "none")
        {
            return refused(file, format!("kvmb connects directly and knows no ProxyCommand ({})", command.join(" ")));
        }
        if let Some((file, _)) = self.others.get("match") {
            return refused(file, "a file that it includes has a Match block, which kvmb cannot read".to_owned());
        }
        Ok(())
    }
}

/// The options of a file for one host; none if there is no such file.
fn read_config(file: &Path, host: &str, access: &SshContext) -> Result<Option<HostParams>> {
    let bad = |reason: String| Error::SshConfig { path: file.to_owned(), reason };
    let text = match atomic_file::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| bad(error.to_string()))?,
    };
    let (text, skipped) = without_match_blocks(&text);
    for line in skipped {
        tracing::warn!("{}: the block '{line}' is left out: kvmb does not read Match", file.display());
    }
    let mut config = SshConfig::default();
    if let Some(home) = &access.home {
        config = config.home_dir(home);
    }
    let rules = ParseRule::ALLOW_UNKNOWN_FIELDS | ParseRule::ALLOW_UNSUPPORTED_FIELDS;
    let config = config.parse(&mut text.as_bytes(), rules).map_err(|error| bad(error.to_string()))?;
    Ok(Some(config.query(host)))
}

/// The parser takes the lines of a `Match` block for those of the `Host` before it, so they must not reach it.
fn without_match_blocks(text: &str) -> (String, Vec<String>) {
    let mut kept = String::new();
    let mut skipped = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        let words: Vec<String> = line
            .split(|c: char| c.is_whitespace() || c == '=')
            .filter(|w| !w.is_empty())
            .map(str::to_lowercase)
            .collect();
        match words.first().map(String::as_str) {
            Some("match") if words.get(1).is_some_and(|word| word == "all") => {
                skipping = false;
                kept.push_str("Host *\n");
                continue;
            }
            Some("match") => {
                skipping = true;
                skipped.push(line.trim().to_owned());
            }
            Some("host") => skipping = false,
            _ => {}
        }
        if !skipping {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    (kept, skipped)
}

/// What `%` sequences mean in `ssh_config`.
struct Tokens {
    home: Option<PathBuf>,
    local_user: String,
    host: String,
    original: String,
    user: String,
    port: u16,
}

impl Tokens {
    fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            let token = if c == '%' { rest.next() } else { None };
            match (c, token) {
                ('%', Some('%')) => expanded.push('%'),
                ('%', Some('h')) => expanded.push_str(&self.host),
                ('%', Some('n')) => expanded.push_str(&self.original),
                ('%', Some('p')) => expanded.push_str(&self.port.to_string()),
                ('%', Some('r')) => expanded.push_str(&self.user),
                ('%', Some('u')) => expanded.push_str(&self.local_user),
                ('%', Some('d')) => {
                    expanded.push_str(&self.home.as_deref().unwrap_or(Path::new("/")).to_string_lossy());
                }
                ('%', other) => {
                    expanded.push('%');
                    expanded.extend(other);
                }
                (other, _) => expanded.push(other),
            }
        }
        expanded
    }

    /// A path: `~` is the home folder.
    fn path(&self, text: &str) -> PathBuf {
        let text = self.expand(text);
        match (text.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(url: &str, user_config: &str, system_config: &str) -> Result<SshTarget> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("home/.ssh")).unwrap();
        std::fs::create_dir_all(folder.path().join("etc")).unwrap();
        std::fs::write(folder.path().join("home/.ssh/config"), user_config).unwrap();
        std::fs::write(folder.path().join("etc/ssh_config"), system_config).unwrap();
        let mut access = SshContext::new("me");
        access.home = Some(folder.path().join("home"));
        access.system_folder = folder.path().join("etc");
        SshTarget::find(&SftpAddress::parse(url).unwrap(), &access)
    }

    fn names(paths: &[PathBuf]) -> Vec<String> {
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn without_configuration_it_is_port_22_the_local_user_and_the_usual_files() {
        let found = route("sftp://host//srv", "", "").unwrap();
        assert_eq!((found.host.as_str(), found.port, found.user.as_str()), ("host", 22, "me"));
        assert_eq!(found.known_as, "host");
        assert_eq!(names(&found.user_known_hosts), ["known_hosts", "known_hosts2"]);
        assert_eq!(names(&found.identities), DEFAULT_IDENTITIES);
        assert!(!found.identities_only);
    }

    #[test]
    fn the_address_wins_over_the_users_file_and_that_over_the_systems() {
        let user = "Host backup\n HostName real.example.com\n Port 2200\n User kvm\n IdentityFile ~/.ssh/one\n\
                    Host *\n Port 99\n User nobody\n IdentityFile ~/.ssh/%r-%h\n";
        let system = "Host *\n Port 100\n IdentitiesOnly yes\n IdentityFile /etc/keys/three\n";
        let found = route("sftp://backup//srv", user, system).unwrap();
        assert_eq!((found.host.as_str(), found.port, found.user.as_str()), ("real.example.com", 2200, "kvm"));
        assert_eq!(found.known_as, "[real.example.com]:2200");
        assert_eq!(names(&found.identities), ["one", "kvm-real.example.com", "three"]);
        assert!(found.identities_only);
        let found = route("sftp://root@backup:22//srv", user, system).unwrap();
        assert_eq!((found.port, found.user.as_str(), found.known_as.as_str()), (22, "root", "real.example.com"));
    }

    #[test]
    fn known_hosts_files_aliases_and_ways_to_log_in_are_taken_from_it() {
        let config = "Host b\n UserKnownHostsFile ~/a /b/%h\n GlobalKnownHostsFile none\n HostKeyAlias The-Server\n\
                      PasswordAuthentication no\n KbdInteractiveAuthentication no\n PubkeyAuthentication no\n\
                      IdentityAgent none\n AddressFamily inet6\n";
        let found = route("sftp://b:2//srv", config, "").unwrap();
        assert_eq!(names(&found.user_known_hosts), ["a", "b"]);
        assert_eq!(found.user_known_hosts[1], Path::new("/b/b"));
        assert!(found.system_known_hosts.is_empty());
        assert_eq!(found.known_as, "the-server");
        assert_eq!(found.forbidden, ["publickey", "password", "keyboard-interactive"]);
        assert_eq!((found.agent_socket, found.family), (None, Family::V6));
    }

    #[test]
    fn a_detour_is_refused_and_not_overlooked() {
        for config in ["ProxyJump gate\n", "Host *\n ProxyCommand nc %h %p\n"] {
            let error = route("sftp://host//srv", config, "").unwrap_err().to_string();
            assert!(error.contains("connects directly") && error.contains("/.ssh/config"), "{error}");
        }
        for config in ["ProxyJump none\n", "Host other\n ProxyJump gate\n", "ProxyCommand none\n"] {
            route("sftp://host//srv", config, "").unwrap();
        }
    }

    #[test]
    fn lines_of_a_match_block_do_not_become_the_host_blocks_before_it() {
        let config = "Host a\n User one\nMatch host b\n Port 2222\nHost c\n Port 3\nMatch all\n User all\n";
        assert_eq!(route("sftp://a//srv", config, "").unwrap().port, 22);
        let found = route("sftp://c//srv", config, "").unwrap();
        assert_eq!((found.port, found.user.as_str()), (3, "all"));
    }
}
