//! The environment variables that kvmb reads, for the manual. `tests/readme.rs` compares the sources and README with
//! it.

/// Every variable and its meaning.
pub const VARIABLES: &[(&str, &str)] = &[
    ("KVMB_REPO", "`--repo`"),
    ("KVMB_PASSWORD_FILE", "`--password-file`: the password; white space around it is ignored"),
    ("KVMB_PASSWORD_COMMAND", "a command that prints the password"),
    ("KVMB_PASSWORD", "the password itself"),
    ("KVMB_FROM_REPO", "`--from-repo`: where `push` copies points from"),
    ("KVMB_FROM_PASSWORD_FILE", "`--from-password-file`"),
    ("KVMB_COPY_TO", "`--copy-to`: the second repository of `backup`, `prune` and `status`"),
    ("KVMB_COPY_TO_PASSWORD_FILE", "`--copy-to-password-file`"),
    (
        "KVMB_SSH_PASSWORD_FILE",
        "`--ssh-password-file`: its first line is the SSH password or the passphrase of the key",
    ),
    ("KVMB_SSH_PASSWORD_COMMAND", "a command whose first output line is that password or passphrase"),
    ("KVMB_SSH_PASSWORD", "that password or passphrase itself"),
    ("KVMB_CACERT", "`--cacert`: certificates to verify HTTPS servers with"),
    ("KVMB_TLS_CLIENT_CERT", "`--tls-client-cert`: the certificate and key of this host for HTTPS servers"),
    ("KVMB_REST_PASSWORD_FILE", "a file whose first line is the password of the account on a REST server"),
    ("KVMB_REST_PASSWORD_COMMAND", "a command whose first output line is that password"),
    ("KVMB_CONFIG", "`--config`: the configuration file"),
    ("KVMB_LOG_FILE", "`--log-file`"),
    ("KVMB_OUTPUT", "`--output`: `table`, `jsonl` or `json`"),
    ("KVMB_SCRATCH", "`--scratch`: the folder for blocks that the guest overwrites during a backup"),
    (
        "KVMB_DATA_DIR",
        "the folder of the default repository, its key, scratch files, the history, jobs and cached data \
         (`/var/lib/kvmb`; for a user below `$XDG_DATA_HOME` and, for history, jobs and cached data, \
         `$XDG_STATE_HOME`)",
    ),
    (
        "KVMB_CACHE_DIR",
        "`--cache-dir`: the folder for copies of the index (`/var/cache/kvmb`; `cache` in `$KVMB_DATA_DIR` if that is \
         set; below `$XDG_CACHE_HOME` for a user)",
    ),
    ("KVMB_RUNTIME_DIR", "the folder of open captures (`/run/kvmb`; below `$XDG_RUNTIME_DIR` for a user)"),
    ("KVMB_COMPLETE", "set by the completion scripts: the shell"),
];

/// Other programs' variables that kvmb respects.
pub(crate) const FOREIGN: &[(&str, &str)] = &[
    ("LIBVIRT_DEFAULT_URI", "the libvirt connection if `--connect` is not given"),
    ("SSH_AUTH_SOCK", "the ssh agent"),
    ("RESTIC_REST_USERNAME", "the account on a REST server"),
    ("RESTIC_REST_PASSWORD", "the password of that account"),
    ("AWS_ACCESS_KEY_ID", "the access key of an object storage"),
    ("AWS_SECRET_ACCESS_KEY", "the secret of that access key"),
    ("AWS_SESSION_TOKEN", "the token of an access key that expires"),
    ("AWS_SHARED_CREDENTIALS_FILE", "a file with access keys (default: `~/.aws/credentials`)"),
    ("AWS_PROFILE", "the profile in that file"),
    ("AWS_REGION", "the region of a bucket"),
    ("AWS_DEFAULT_REGION", "the region of a bucket, if `AWS_REGION` is not set"),
    ("HTTPS_PROXY", "the proxy for servers with TLS (default: `ALL_PROXY`)"),
    ("HTTP_PROXY", "the proxy for HTTP servers without TLS (default: `ALL_PROXY`)"),
    ("NO_PROXY", "servers to reach without a proxy, separated by commas"),
    ("JOURNAL_STREAM", "set by systemd: kvmb logs to the journal"),
    ("NO_COLOR", "disables colour if it is not empty"),
    ("CLICOLOR_FORCE", "enables colour even without a terminal, if it is neither empty nor 0"),
    ("TZ", "the time zone of times in tables, and of times given without an offset"),
];
