//! The address of a backup server, from the fields of a form.

use serde_json::Value;

/// A field of the address.
pub(super) struct AddressField {
    pub(super) key: &'static str,
    pub(super) class: &'static str,
    pub(super) english: &'static str,
    pub(super) french: &'static str,
    pub(super) english_help: &'static str,
    pub(super) french_help: &'static str,
}

/// The fields, named as in the configuration.
pub(super) const FIELDS: [AddressField; 4] = [
    AddressField {
        key: "backup_host",
        class: "",
        english: "Host",
        french: "Hôte",
        english_help: "name or IP address",
        french_help: "nom ou adresse IP",
    },
    AddressField {
        key: "backup_user",
        class: "w-m",
        english: "User",
        french: "Utilisateur",
        english_help: "empty: the one that kvmb runs as",
        french_help: "vide\u{a0}: celui qui lance kvmb",
    },
    AddressField {
        key: "backup_path",
        class: "",
        english: "Folder",
        french: "Dossier",
        english_help: "on the server; holds the repository",
        french_help: "sur le serveur\u{202f}; contient le dépôt",
    },
    AddressField {
        key: "ssh.port",
        class: "w-s",
        english: "Port",
        french: "Port",
        english_help: "empty: that of ~/.ssh/config, otherwise 22",
        french_help: "vide\u{a0}: celui de ~/.ssh/config, sinon 22",
    },
];

/// The address of a server, and the folder on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    user: String,
    path: String,
    port: Option<u16>,
}

/// The error of a field, in both languages.
pub(super) type Fault = (&'static str, (&'static str, &'static str));

impl Address {
    /// Builds the address from the values of the fields.
    pub(super) fn of(value: &dyn Fn(&str) -> String) -> Result<Address, Vec<Fault>> {
        let (host, user, path, port) =
            (value("backup_host"), value("backup_user"), value("backup_path"), value("ssh.port"));
        let mut faults = Vec::new();
        let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
        if host.is_empty() {
            faults.push(("backup_host", ("Enter the name of the server.", "Entrez le nom du serveur.")));
        } else if host.starts_with('-') || !plain(&host, "-._:%") {
            faults.push(("backup_host", ("This is not a host name.", "Ce n’est pas un nom d’hôte.")));
        }
        if user.starts_with('-') || !plain(&user, "-._") {
            faults.push(("backup_user", ("This is not a user name.", "Ce n’est pas un nom d’utilisateur.")));
        }
        if !path.starts_with('/') || path.contains(char::is_control) {
            faults
                .push(("backup_path", ("Enter a folder that begins with /.", "Entrez un dossier qui commence par /.")));
        }
        let number = port.parse::<u16>().ok().filter(|port| *port > 0);
        if !port.is_empty() && number.is_none() {
            faults.push(("ssh.port", ("Enter a number from 1 to 65535.", "Entrez un nombre de 1 à 65535.")));
        }
        if faults.is_empty() { Ok(Address { host, user, path, port: number }) } else { Err(faults) }
    }

    /// Returns the URL in the notation of restic and kvmb.
    pub(super) fn url(&self) -> String {
        let user = if self.user.is_empty() { String::new() } else { format!("{}@", self.user) };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("sftp://{user}{host}{port}/{}", self.path)
    }

    /// Returns the account that a password prompt refers to.
    pub(super) fn account(&self) -> String {
        match self.user.is_empty() {
            true => self.host.clone(),
            false => format!("{}@{}", self.user, self.host),
        }
    }
}

/// Formats a value of the configuration for a field.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str, user: &str, path: &str, port: &str) -> Result<String, Vec<&'static str>> {
        let value = |key: &str| {
            let value = match key {
                "backup_host" => host,
                "backup_user" => user,
                "backup_path" => path,
                _ => port,
            };
            value.to_owned()
        };
        let address = Address::of(&value);
        address.map(|address| address.url()).map_err(|faults| faults.iter().map(|(key, _)| *key).collect())
    }

    #[test]
    fn address_fields_become_a_url_or_list_the_invalid_fields() {
        assert_eq!(of("backup.example.com", "kvm", "/srv/kvm", "").unwrap(), "sftp://kvm@backup.example.com//srv/kvm");
        assert_eq!(of("2001:db8::1", "", "/b", "2222").unwrap(), "sftp://[2001:db8::1]:2222//b");
        assert_eq!(of("", "-x", "srv", "0").unwrap_err(), ["backup_host", "backup_user", "backup_path", "ssh.port"]);
        assert_eq!(of("a b", "kvm", "/", "65536").unwrap_err(), ["backup_host", "ssh.port"]);
        assert_eq!(
            of("-oProxyCommand=x", "a@b", "/a\n", "").unwrap_err(),
            ["backup_host", "backup_user", "backup_path"]
        );
    }
}
