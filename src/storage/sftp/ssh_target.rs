//! Combines an address with `~/.ssh/config` and `/etc/ssh/ssh_config`, as users of `ssh` expect.
//!
//! [`super::ssh_config`] runs `ssh` itself; the address takes precedence over its options. Only the tokens (`%h` …) and
//! the variables (`${HOME}` …) in file names, and the tokens in `ProxyCommand`, are expanded here.

use super::proxy::Proxy;
use super::ssh_config::HostOptions;
use super::{Result, SftpAddress, SshContext, SshTimeouts};
use std::path::{Path, PathBuf};

/// The keys that `ssh` tries if none is configured.
const DEFAULT_IDENTITIES: [&str; 3] = ["id_rsa", "id_ecdsa", "id_ed25519"];

/// The connection parameters of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshTarget {
    /// The name or address to connect to.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    /// The name in known_hosts: `host`, or `[host]:port`.
    pub(crate) known_as: String,
    /// The name under which the server may be known as well: `host`, if it is not reached at the usual port.
    pub(crate) known_without_port: Option<String>,
    /// The user's known_hosts files; a new key is added to the first.
    pub(crate) user_known_hosts: Vec<PathBuf>,
    pub(crate) system_known_hosts: Vec<PathBuf>,
    /// Key files, in the order in which they are tried.
    pub(crate) identities: Vec<PathBuf>,
    /// Certificates that are not next to their keys.
    pub(crate) certificates: Vec<PathBuf>,
    /// Whether only these keys may be used, and no others of the agent.
    pub(crate) identities_only: bool,
    pub(crate) agent_socket: Option<PathBuf>,
    /// Methods that the user disabled: `publickey`, `password`, `keyboard-interactive`.
    pub(crate) forbidden: Vec<&'static str>,
    pub(crate) family: Family,
    /// The proxy, if the connection is not direct.
    pub(crate) proxy: Option<Proxy>,
    /// Whether the name of a server is hashed in known_hosts.
    pub(crate) hash_known_hosts: bool,
    pub(crate) timeouts: SshTimeouts,
}

/// Which addresses of a host to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl SshTarget {
    /// Reads the configuration from `ssh`.
    pub(crate) fn find(target: &SftpAddress, ssh_context: &SshContext) -> Result<SshTarget> {
        Ok(target_of(&HostOptions::of(target, ssh_context)?, target, ssh_context))
    }

    /// Returns the same target, restricted to this key.
    pub(crate) fn only_with(&self, key: &Path) -> SshTarget {
        SshTarget {
            identities: vec![key.to_owned()],
            identities_only: true,
            agent_socket: None,
            forbidden: vec!["keyboard-interactive", "password"],
            ..self.clone()
        }
    }

    /// Returns the server's name for messages.
    pub(crate) fn server(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Returns the account's name for prompts.
    pub(crate) fn account(&self) -> String {
        format!("{}@{}", self.user, self.host)
    }
}

/// Combines an address with the options for its host. The address takes precedence.
fn target_of(options: &HostOptions, target: &SftpAddress, ssh_context: &SshContext) -> SshTarget {
    let user = target.user.clone().or_else(|| options.text("user").map(str::to_owned));
    let user = user.unwrap_or_else(|| ssh_context.user.clone());
    let port = target.port.or_else(|| options.number("port")).unwrap_or(22);
    let host = options.text("hostname").map_or_else(|| target.host.clone(), str::to_owned);
    // As in `ssh`, an alias is used without the port.
    let known_as = match options.text("hostkeyalias") {
        Some(alias) => alias.to_lowercase(),
        None if port == 22 => host.to_lowercase(),
        None => format!("[{}]:{port}", host.to_lowercase()),
    };
    let known_without_port = known_as.starts_with('[').then(|| host.to_lowercase());
    let tokens = Tokens {
        home: ssh_context.home.clone(),
        variable: ssh_context.variable,
        local_user: ssh_context.user.clone(),
        host: host.clone(),
        original: target.host.clone(),
        known_as: known_as.clone(),
        user: user.clone(),
        port,
    };
    let ssh = ssh_context.home.as_ref().map(|home| home.join(".ssh"));
    let paths = |values: &[String]| -> Vec<PathBuf> { values.iter().map(|value| tokens.path(value)).collect() };
    let user_names = ["known_hosts", "known_hosts2"];
    let user_known_hosts = match options.files("userknownhostsfile", &options.ssh_home.join(".ssh"), user_names) {
        Some(files) => paths(&files),
        None => ssh.iter().flat_map(|ssh| user_names.map(|name| ssh.join(name))).collect(),
    };
    let system_names = ["ssh_known_hosts", "ssh_known_hosts2"];
    let system_known_hosts = match options.files("globalknownhostsfile", Path::new("/etc/ssh"), system_names) {
        Some(files) => paths(&files),
        None => system_names.map(|name| ssh_context.system_folder.join(name)).to_vec(),
    };
    // `ssh -G` prints its defaults as if they were configured. Use only those that libssh2 supports.
    let named: Vec<String> = options.all("identityfile").iter().filter(|file| *file != "none").cloned().collect();
    let is_default = named.iter().all(|file| file.starts_with("~/.ssh/id_"));
    let mut identities: Vec<PathBuf> = match options.all("identityfile").is_empty() || (is_default && named.len() > 3) {
        true => ssh.iter().flat_map(|ssh| DEFAULT_IDENTITIES.map(|name| ssh.join(name))).collect(),
        false => paths(&named),
    };
    // Try kvmb's own key first, which avoids failed attempts with the others.
    if let Some(own) = &ssh_context.own_key {
        identities.insert(0, own.clone());
    }
    let agent_socket = match options.all("identityagent").first().map(String::as_str) {
        Some("none") => None,
        Some("SSH_AUTH_SOCK") | None => ssh_context.agent_socket.clone(),
        // A variable that contains the path; `${NAME}` is expanded as in other paths.
        Some(text) if text.starts_with('$') && !text.starts_with("${") => {
            (ssh_context.variable)(&text[1..]).map(PathBuf::from)
        }
        Some(path) => Some(tokens.path(path)),
    };
    let ways = [
        ("pubkeyauthentication", "publickey"),
        ("passwordauthentication", "password"),
        ("kbdinteractiveauthentication", "keyboard-interactive"),
    ];
    let family = match options.text("addressfamily") {
        Some("inet") => Family::V4,
        Some("inet6") => Family::V6,
        _ => Family::Any,
    };
    SshTarget {
        proxy: proxy_of(options, &tokens, ssh_context),
        host,
        port,
        user,
        known_as,
        known_without_port,
        user_known_hosts,
        system_known_hosts,
        identities,
        certificates: paths(options.all("certificatefile")),
        identities_only: options.is("identitiesonly", true),
        agent_socket,
        forbidden: ways.iter().filter(|(option, _)| options.is(option, false)).map(|(_, way)| *way).collect(),
        family,
        hash_known_hosts: options.is("hashknownhosts", true),
        timeouts: timeouts_of(options, ssh_context.timeouts),
    }
}

fn proxy_of(options: &HostOptions, tokens: &Tokens, ssh_context: &SshContext) -> Option<Proxy> {
    if let Some(hosts) = options.text("proxyjump") {
        // ssh itself reads the configuration from the home folder in the password database.
        let elsewhere = ssh_context.home.as_ref().filter(|home| **home != options.ssh_home);
        let config = elsewhere.map(|home| home.join(".ssh/config")).filter(|file| file.exists());
        return Some(Proxy::Jump { hosts: tokens.expand(hosts), config });
    }
    options.text("proxycommand").map(|line| Proxy::Command(tokens.expand(line)))
}

/// Applies the timeouts of `ssh_config`. A server is considered dead when this number of keep-alives in a row failed. 0
/// disables this in ssh, but not here, where nobody may be watching.
fn timeouts_of(options: &HostOptions, usual: SshTimeouts) -> SshTimeouts {
    let mut timeouts = usual;
    if let Some(connect) = options.seconds("connecttimeout") {
        timeouts.connect = connect;
    }
    if let Some(interval) = options.seconds("serveraliveinterval") {
        let count: u32 = options.number("serveralivecountmax").unwrap_or(3);
        timeouts.keep_alive = interval;
        timeouts.silence = interval.saturating_mul(count.max(1));
    }
    timeouts
}

/// The values of `%` tokens in `ssh_config`.
struct Tokens {
    home: Option<PathBuf>,
    variable: fn(&str) -> Option<String>,
    local_user: String,
    host: String,
    original: String,
    known_as: String,
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
                ('%', Some('k' | 'K')) => expanded.push_str(&self.known_as),
                ('%', Some('i')) => expanded.push_str(&rustix::process::getuid().as_raw().to_string()),
                ('%', Some('l')) => expanded.push_str(&rustix::system::uname().nodename().to_string_lossy()),
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

    /// Expands variables. A variable that is not set is left as it is, which makes a name that does not exist.
    fn expand_variables(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, (name, after))) =
            rest.split_once("${").and_then(|(before, after)| Some((before, after.split_once('}')?)))
        {
            expanded.push_str(before);
            match (self.variable)(name) {
                Some(value) => expanded.push_str(&value),
                None => expanded.push_str(&format!("${{{name}}}")),
            }
            rest = after;
        }
        expanded + rest
    }

    /// Expands a path: `~` is the home folder, and `${NAME}` a variable.
    fn path(&self, text: &str) -> PathBuf {
        let text = self.expand_variables(&self.expand(text));
        match (text.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh_target(url: &str, user_config: &str, system_config: &str) -> Result<SshTarget> {
        ssh_target_with(url, user_config, system_config, |_| None)
    }

    fn ssh_target_with(
        url: &str,
        user_config: &str,
        system_config: &str,
        variable: fn(&str) -> Option<String>,
    ) -> Result<SshTarget> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("home/.ssh")).unwrap();
        std::fs::create_dir_all(folder.path().join("etc")).unwrap();
        std::fs::write(folder.path().join("home/.ssh/config"), user_config).unwrap();
        std::fs::write(folder.path().join("etc/ssh_config"), system_config).unwrap();
        let mut ssh_context = SshContext::new("me");
        ssh_context.home = Some(folder.path().join("home"));
        ssh_context.system_folder = folder.path().join("etc");
        ssh_context.variable = variable;
        SshTarget::find(&SftpAddress::parse(url).unwrap(), &ssh_context)
    }

    fn names(paths: &[PathBuf]) -> Vec<String> {
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn defaults_apply_without_ssh_configuration() {
        let found = ssh_target("sftp://host//srv", "", "").unwrap();
        assert_eq!((found.host.as_str(), found.port, found.user.as_str()), ("host", 22, "me"));
        assert_eq!(found.known_as, "host");
        assert_eq!(names(&found.user_known_hosts), ["known_hosts", "known_hosts2"]);
        assert_eq!(names(&found.identities), DEFAULT_IDENTITIES);
        assert!(!found.identities_only);
    }

    #[test]
    fn address_overrides_user_configuration_which_overrides_system() {
        let user = "Host backup\n HostName real.example.com\n Port 2200\n User kvm\n IdentityFile ~/.ssh/one\n\
                    Host *\n Port 99\n User nobody\n IdentityFile ~/.ssh/%r-%h\n";
        let system = "Host *\n Port 100\n IdentitiesOnly yes\n IdentityFile /etc/keys/three\n";
        let found = ssh_target("sftp://backup//srv", user, system).unwrap();
        assert_eq!((found.host.as_str(), found.port, found.user.as_str()), ("real.example.com", 2200, "kvm"));
        assert_eq!(found.known_as, "[real.example.com]:2200");
        assert_eq!(found.known_without_port.as_deref(), Some("real.example.com"));
        assert_eq!(names(&found.identities), ["one", "kvm-real.example.com", "three"]);
        assert!(found.identities_only);
        let found = ssh_target("sftp://root@backup:22//srv", user, system).unwrap();
        assert_eq!((found.port, found.user.as_str(), found.known_as.as_str()), (22, "root", "real.example.com"));
    }

    #[test]
    fn known_hosts_aliases_and_login_methods_are_configurable() {
        let config = "Host b\n UserKnownHostsFile ~/a /b/%h\n GlobalKnownHostsFile none\n HostKeyAlias The-Server\n\
                      PasswordAuthentication no\n KbdInteractiveAuthentication no\n PubkeyAuthentication no\n\
                      IdentityAgent none\n AddressFamily inet6\n";
        let found = ssh_target("sftp://b:2//srv", config, "").unwrap();
        assert_eq!(names(&found.user_known_hosts), ["a", "b"]);
        assert_eq!(found.user_known_hosts[1], Path::new("/b/b"));
        assert!(found.system_known_hosts.is_empty());
        assert_eq!((found.known_as.as_str(), found.known_without_port.as_deref()), ("the-server", None));
        assert_eq!(found.forbidden, ["publickey", "password", "keyboard-interactive"]);
        assert_eq!((found.agent_socket, found.family), (None, Family::V6));
    }

    #[test]
    fn known_hosts_paths_may_contain_spaces() {
        let config = "UserKnownHostsFile \"/a/My Files/known hosts\" ~/b\nGlobalKnownHostsFile \"/c d\"\n";
        let found = ssh_target("sftp://b//srv", config, "").unwrap();
        assert_eq!(found.user_known_hosts[0], Path::new("/a/My Files/known hosts"));
        assert_eq!(names(&found.user_known_hosts), ["known hosts", "b"]);
        assert_eq!(found.system_known_hosts, [Path::new("/c d")]);
    }

    #[test]
    fn variables_in_paths_are_expanded_as_by_ssh() {
        // `ssh` itself refuses some options with variables that are not set.
        let home = std::env::var("HOME").unwrap();
        let variable = |name: &str| std::env::var(name).ok();
        let read = |config: &str| ssh_target_with("sftp://b//srv", config, "", variable).unwrap();
        let found = read("IdentityFile ${HOME}/%h.key\nIdentityFile /x/${NONE}/y\nUserKnownHostsFile ${HOME}/known\n");
        assert_eq!(found.identities, [Path::new(&home).join("b.key"), PathBuf::from("/x/${NONE}/y")]);
        assert_eq!(found.user_known_hosts, [Path::new(&home).join("known")]);
        let agent = Path::new(&home).join("agent");
        for (value, socket) in [("$HOME", Path::new(&home)), ("${HOME}/agent", &agent), ("/run/a", Path::new("/run/a"))]
        {
            let found = read(&format!("IdentityAgent {value}\n"));
            assert_eq!(found.agent_socket.as_deref(), Some(socket), "{value}");
        }
        assert_eq!(read("IdentityAgent $NONE\n").agent_socket, None);
    }

    #[test]
    fn proxy_is_read_from_configuration_and_can_be_disabled() {
        let jump = ssh_target("sftp://host//srv", "ProxyJump me@gate:2200\n", "").unwrap();
        let Some(Proxy::Jump { hosts, config: Some(_) }) = jump.proxy else { panic!("{jump:?}") };
        assert_eq!(hosts, "me@gate:2200");
        let command = ssh_target("sftp://kvm@host:7//srv", "Host *\n ProxyCommand nc -X %r %h %p 100%%\n", "").unwrap();
        assert_eq!(command.proxy, Some(Proxy::Command("nc -X kvm host 7 100%".to_owned())));
        for config in ["ProxyJump none\n", "Host other\n ProxyJump gate\n", "ProxyCommand none\n"] {
            assert_eq!(ssh_target("sftp://host//srv", config, "").unwrap().proxy, None);
        }
    }

    #[test]
    fn match_blocks_and_included_files_are_applied() {
        let config = "Host a\n User one\nMatch host b user kvm\n Port 2222\nMatch exec true host d\n Port 4\nHost c\n \
            Port 3\n\
                      Match all\n User all\n";
        assert_eq!(ssh_target("sftp://a//srv", config, "").unwrap().port, 22);
        assert_eq!(ssh_target("sftp://kvm@b//srv", config, "").unwrap().port, 2222);
        assert_eq!(ssh_target("sftp://d//srv", config, "").unwrap().port, 4);
        let found = ssh_target("sftp://c//srv", config, "").unwrap();
        assert_eq!((found.port, found.user.as_str()), (3, "all"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("more"), "Host b\n Port 5\n").unwrap();
        let config = format!("Include {}/*\nHost c\n Port 6\n", folder.path().display());
        assert_eq!(ssh_target("sftp://b//srv", &config, "").unwrap().port, 5);
    }

    #[test]
    fn unknown_ssh_option_is_an_error() {
        let error = ssh_target("sftp://a//srv", "NoSuchOption yes\n", "").unwrap_err().to_string();
        assert!(error.contains("/.ssh/config: ") && error.to_lowercase().contains("nosuchoption"), "{error}");
        // The lines of ssh end with a carriage return and a line feed.
        assert!(error.contains("; ") && !error.contains("; ;"), "{error}");
        assert!(!error.contains("erminal will not"), "{error}");
    }
}
