//! The names of configuration keys for people, their groups, and their descriptions in French.
//!
//! The English descriptions are those of the schema.

use crate::console::language::Language;

/// A group of keys: its anchor, and its names.
pub(super) struct SettingGroup {
    pub(super) id: &'static str,
    pub(super) english: &'static str,
    pub(super) french: &'static str,
    pub(super) keys: &'static [SettingWords],
}

/// A key: its names, and its description in French.
pub(super) struct SettingWords {
    pub(super) key: &'static str,
    english: &'static str,
    french: &'static str,
    french_help: &'static str,
}

impl SettingWords {
    pub(super) fn name(&self, language: Language) -> &'static str {
        language.say(self.english, self.french)
    }

    /// Returns the description, if this language has its own.
    pub(super) fn help(&self, language: Language) -> Option<&'static str> {
        (language == Language::French).then_some(self.french_help)
    }
}

/// Returns the names and description of a key.
pub(super) fn words(key: &str) -> Option<&'static SettingWords> {
    GROUPS.iter().flat_map(|group| group.keys).find(|words| words.key == key)
}

const fn key(
    key: &'static str,
    english: &'static str,
    french: &'static str,
    french_help: &'static str,
) -> SettingWords {
    SettingWords { key, english, french, french_help }
}

/// All keys, in the order of the page.
pub(super) const GROUPS: &[SettingGroup] = &[
    SettingGroup {
        id: "repositories",
        english: "Repositories",
        french: "Dépôts",
        keys: &[
            key(
                "repo",
                "Local repository",
                "Dépôt local",
                "Un dossier. Vide\u{a0}: aucun, les sauvegardes vont directement au serveur.",
            ),
            key(
                "password_file",
                "Password file",
                "Fichier du mot de passe",
                "Un fichier dont la première ligne est le mot de passe du dépôt local.",
            ),
            key(
                "password_command",
                "Password command",
                "Commande du mot de passe",
                "Une commande dont la première ligne de sortie est ce mot de passe.",
            ),
            key(
                "remote_password_file",
                "Password file of the server",
                "Fichier du mot de passe du serveur",
                "Un fichier dont la première ligne est le mot de passe du dépôt sur le serveur. Par \
                 défaut\u{a0}: celui du \
                 dépôt local.",
            ),
            key(
                "retry_for",
                "Retry for",
                "Réessayer pendant",
                "Combien de temps réessayer après la perte de la connexion à un dépôt.",
            ),
            key(
                "cache_dir",
                "Cache folder",
                "Dossier du cache",
                "Le dossier des copies de l’index. Par défaut\u{a0}: /var/cache/kvmb.",
            ),
            key(
                "key_cache",
                "Keep derived keys for",
                "Garder les clés dérivées pendant",
                "Combien de temps les clés dérivées des mots de passe restent dans le trousseau du noyau. Par \
                 défaut\u{a0}: pas du tout.",
            ),
            key(
                "limit_upload",
                "Upload limit",
                "Limite d’envoi",
                "Limite des écritures dans les dépôts, en octets par seconde.",
            ),
            key(
                "compression",
                "Compression",
                "Compression",
                "La force de la compression des nouvelles données. Par défaut\u{a0}: auto, plus forte quand le dépôt \
                 est le goulot d’étranglement.",
            ),
        ],
    },
    SettingGroup {
        id: "server",
        english: "Backup server",
        french: "Serveur de sauvegarde",
        keys: &[
            key("backup_host", "Host", "Hôte", "Un nom ou une adresse IP. Vide\u{a0}: local seulement."),
            key(
                "backup_user",
                "User",
                "Utilisateur",
                "Le compte sur le serveur\u{202f}; sans lui, celui qui lance kvmb.",
            ),
            key(
                "backup_path",
                "Folder",
                "Dossier",
                "Le dossier du dépôt sur le serveur\u{202f}; s’il contient autre chose, ce sera le dossier kvmb \
                 là-dedans.",
            ),
            key("ssh.port", "Port", "Port", "Port SSH. Par défaut\u{a0}: celui de ~/.ssh/config, sinon 22."),
            key(
                "ssh.identity_file",
                "Private key",
                "Clé privée",
                "Par défaut\u{a0}: la clé de kvmb, celles de l’agent et de ~/.ssh.",
            ),
            key(
                "ssh.password_file",
                "Password file of the login",
                "Fichier du mot de passe d’accès",
                "Un fichier dont la première ligne est le mot de passe d’accès, s’il n’y a pas de clé.",
            ),
            key(
                "ssh.password_command",
                "Password command of the login",
                "Commande du mot de passe d’accès",
                "Une commande dont la première ligne de sortie est ce mot de passe.",
            ),
            key(
                "ssh.connections",
                "Connections",
                "Connexions",
                "Nombre de connexions (6 par défaut). Chacune prend jusqu’à 16\u{202f}Mio de mémoire.",
            ),
            key(
                "ssh.progress_timeout",
                "Progress timeout",
                "Délai sans progrès",
                "Combien de temps un serveur peut ne pas avancer avant que kvmb se reconnecte (deux minutes par \
                 défaut).",
            ),
        ],
    },
    SettingGroup {
        id: "servers",
        english: "Object storage and REST servers",
        french: "Stockage objet et serveurs REST",
        keys: &[
            key(
                "copy_to",
                "Second repository",
                "Second dépôt",
                "Le dépôt où les points sont copiés. Par défaut\u{a0}: celui du serveur de sauvegarde.",
            ),
            key(
                "http.ca_file",
                "Certificates of servers",
                "Certificats des serveurs",
                "Un fichier avec les certificats (PEM) pour vérifier les serveurs. Par défaut\u{a0}: ceux du système.",
            ),
            key(
                "http.client_certificate",
                "Client certificate",
                "Certificat du client",
                "Un fichier avec un certificat et sa clé privée (PEM), à montrer aux serveurs.",
            ),
            key(
                "http.user",
                "User of a REST server",
                "Utilisateur d’un serveur REST",
                "Le compte sur un serveur REST, si son adresse n’en nomme pas.",
            ),
            key(
                "http.password_file",
                "Password file of a REST server",
                "Fichier du mot de passe d’un serveur REST",
                "Un fichier dont la première ligne est le mot de passe de ce compte.",
            ),
            key(
                "http.password_command",
                "Password command of a REST server",
                "Commande du mot de passe d’un serveur REST",
                "Une commande dont la première ligne de sortie est ce mot de passe.",
            ),
            key(
                "http.timeout",
                "Time without progress",
                "Délai sans progrès",
                "Combien de temps un serveur peut mettre à envoyer ou à accepter les octets suivants (deux minutes par \
                 défaut).",
            ),
            key(
                "s3.credentials_file",
                "Access keys",
                "Clés d’accès",
                "Un fichier avec les clés d’accès, comme pour les programmes d’AWS. Par défaut\u{a0}: \
                 ~/.aws/credentials.",
            ),
            key("s3.profile", "Profile", "Profil", "Le profil dans ce fichier. Par défaut\u{a0}: default."),
            key(
                "s3.region",
                "Region",
                "Région",
                "La région des signatures. Par défaut\u{a0}: ce que dit le nom du serveur, sinon us-east-1.",
            ),
            key(
                "s3.bucket_lookup",
                "Place of the bucket",
                "Place du bucket",
                "Où le nom du bucket se trouve dans une requête\u{a0}: devant le nom d’hôte (dns), dans le chemin \
                 (path) ou comme d’habitude pour ce serveur (auto).",
            ),
            key(
                "s3.storage_class",
                "Storage class",
                "Classe de stockage",
                "La classe de stockage des données. Celles d’archivage ne conviennent pas\u{a0}: les sauvegardes \
                 lisent les données plus anciennes.",
            ),
            key(
                "s3.encryption",
                "Encryption by the server",
                "Chiffrement par le serveur",
                "Le chiffrement que le serveur ajoute\u{a0}: AES256, aws:kms ou aws:kms:CLÉ.",
            ),
            key(
                "s3.lock_for",
                "Locked for",
                "Verrouillage",
                "La durée pendant laquelle personne ne peut supprimer ni modifier ce qui est écrit dans un \
                 bucket (Object Lock).",
            ),
        ],
    },
    SettingGroup {
        id: "machines",
        english: "Reading machines",
        french: "Lecture des machines",
        keys: &[
            key("connect", "Connection", "Connexion", "La connexion à libvirt, comme pour virsh."),
            key(
                "selected_vms",
                "Selected machines",
                "Machines choisies",
                "Les machines que «\u{202f}kvmb backup\u{202f}» sauvegarde sans noms\u{a0}: true en prend une, \
                 false l’écarte. Un nom peut \
                 être un motif (\"web*\")\u{202f}; false l’emporte.",
            ),
            key(
                "excluded_disks",
                "Disks that are left out",
                "Disques laissés de côté",
                "Les disques que les sauvegardes laissent de côté, par machine\u{a0}: {\"vm1\": [\"vdb\"]}.",
            ),
            key(
                "jobs",
                "Machines at the same time",
                "Machines en même temps",
                "Nombre de machines à sauvegarder en même temps.",
            ),
            key(
                "threads",
                "Threads that hash and compress",
                "Degré de parallélisme",
                "Nombre de fils d’exécution qui hachent et compressent, pour chaque machine. Par défaut\u{a0}: un par \
                 processeur, au plus 8.",
            ),
            key(
                "freeze",
                "Freeze file systems",
                "Figer les systèmes de fichiers",
                "S’il faut figer les systèmes de fichiers de l’invité par l’agent invité pendant la capture.",
            ),
            key("freeze_timeout", "Freeze timeout", "Délai pour figer", "Combien de temps attendre l’agent invité."),
            key(
                "lease",
                "Lease",
                "Bail",
                "Combien de temps une capture peut rester ouverte sans que personne la lise.",
            ),
            key(
                "scratch",
                "Scratch folder",
                "Dossier temporaire",
                "Dossier des blocs que les invités réécrivent pendant une sauvegarde.",
            ),
            key(
                "audit",
                "Audit",
                "Contrôle",
                "Part des blocs inchangés à relire et à comparer, pour contrôler la carte des modifications.",
            ),
            key(
                "chunk_size",
                "Chunk size",
                "Taille des blocs",
                "Taille des blocs par lesquels les disques sont comparés et stockés. Par défaut\u{a0}: celle du point \
                 précédent\u{a0}; pour un nouveau disque 1M jusqu’à 64\u{202f}Gio, 2M jusqu’à 1\u{202f}Tio, 4M \
                 au-delà.",
            ),
            key(
                "full_every",
                "Read in full every",
                "Lecture complète tous les",
                "Lire un disque en entier, et comparer, s’il ne l’a pas été depuis ce temps. Par défaut\u{a0}: jamais.",
            ),
            key(
                "limit_read",
                "Read limit",
                "Limite de lecture",
                "Limite des lectures de tous les disques ensemble, en octets par seconde. Par défaut\u{a0}: aucune.",
            ),
        ],
    },
    SettingGroup {
        id: "schedule",
        english: "Schedule",
        french: "Planification",
        keys: &[
            key(
                "auto_backup",
                "Scheduled backups",
                "Sauvegardes planifiées",
                "S’il faut planifier les sauvegardes selon backup_freq.",
            ),
            key("backup_freq", "Expression", "Expression", "Quand sauvegarder, comme dans crontab(5)."),
        ],
    },
    SettingGroup {
        id: "verification",
        english: "Verification and monitoring",
        french: "Vérification et surveillance",
        keys: &[
            key(
                "verify",
                "Verify each new point",
                "Vérifier chaque nouveau point",
                "S’il faut vérifier chaque nouveau point en le relisant.",
            ),
            key(
                "verify_sample",
                "Sample after each run",
                "Échantillon après chaque exécution",
                "Part des blocs d’un dépôt à vérifier après chaque sauvegarde. Par défaut\u{a0}: aucune.",
            ),
            key(
                "status.warning",
                "Overdue after",
                "En retard après",
                "Avertir si le dernier point d’une machine est plus vieux. Par défaut\u{a0}: selon la planification.",
            ),
            key(
                "status.critical",
                "Far overdue after",
                "Très en retard après",
                "État critique s’il est plus vieux. Par défaut\u{a0}: selon la planification.",
            ),
            key(
                "status.verify_warning",
                "Not verified for",
                "Non vérifié depuis",
                "Avertir si aucun point d’une machine n’a été vérifié depuis ce temps. Par défaut\u{a0}: 30 jours.",
            ),
            key(
                "drill.max_age",
                "Not booted for",
                "Non démarrée depuis",
                "Avertir si aucun point d’une machine n’a été démarré depuis ce temps. Par défaut\u{a0}: jamais.",
            ),
            key(
                "drill.until",
                "Goal of a drill",
                "Suffisant à l’essai",
                "Ce qui suffit aux machines sans commande de contrôle\u{a0}: started, console ou agent.",
            ),
            key(
                "drill.timeout",
                "Time for a drill",
                "Durée d’un essai",
                "Le temps qu’une machine peut prendre. Par défaut\u{a0}: 10m, et 40m sans KVM.",
            ),
            key("drill.memory", "Memory in a drill", "Mémoire à l’essai", "La mémoire qu’une machine reçoit au plus."),
            key(
                "drill.vcpus",
                "Processors in a drill",
                "Processeurs à l’essai",
                "Les processeurs qu’une machine reçoit au plus.",
            ),
            key(
                "drill.check",
                "Checks in drills",
                "Commandes de contrôle",
                "Par machine, une commande qui doit réussir dans l’invité. Un nom peut être un modèle\u{a0}; le nom \
                 exact l’emporte.",
            ),
            key(
                "drill.expect",
                "Texts in drills",
                "Textes attendus",
                "Par machine, un texte qui doit venir sur la console. Un nom peut être un modèle\u{a0}; le nom exact \
                 l’emporte.",
            ),
            key(
                "status.prometheus_textfile",
                "Metrics for Prometheus",
                "Mesures pour Prometheus",
                "Le fichier où «\u{202f}kvmb backup\u{202f}» écrit ses mesures après chaque exécution.",
            ),
        ],
    },
    SettingGroup {
        id: "retention",
        english: "Retention",
        french: "Rétention",
        keys: &[
            key(
                "prune_after_backup",
                "Prune after each backup",
                "Purger après chaque sauvegarde",
                "S’il faut supprimer les vieux points après chaque sauvegarde, selon les règles.",
            ),
            key(
                "retention.local.keep_last",
                "Local: keep last",
                "Local\u{a0}: garder les derniers",
                "Garder les derniers points.",
            ),
            key(
                "retention.local.keep_hourly",
                "Local: keep hourly",
                "Local\u{a0}: garder par heure",
                "Garder le dernier point de chacune des dernières heures qui en ont un.",
            ),
            key(
                "retention.local.keep_daily",
                "Local: keep daily",
                "Local\u{a0}: garder par jour",
                "Garder le dernier point de chacun des derniers jours qui en ont un.",
            ),
            key(
                "retention.local.keep_weekly",
                "Local: keep weekly",
                "Local\u{a0}: garder par semaine",
                "Garder le dernier point de chacune des dernières semaines (lundi à dimanche) qui en ont un.",
            ),
            key(
                "retention.local.keep_monthly",
                "Local: keep monthly",
                "Local\u{a0}: garder par mois",
                "Garder le dernier point de chacun des derniers mois qui en ont un.",
            ),
            key(
                "retention.local.keep_yearly",
                "Local: keep yearly",
                "Local\u{a0}: garder par an",
                "Garder le dernier point de chacune des dernières années qui en ont un.",
            ),
            key(
                "retention.local.keep_within",
                "Local: keep within",
                "Local\u{a0}: garder pendant",
                "Garder chaque point plus récent que cela avant le plus récent\u{a0}: \"30d\", \"1y6m\", \"12h\".",
            ),
            key(
                "retention.remote.keep_last",
                "Server: keep last",
                "Serveur\u{a0}: garder les derniers",
                "Garder les derniers points.",
            ),
            key(
                "retention.remote.keep_hourly",
                "Server: keep hourly",
                "Serveur\u{a0}: garder par heure",
                "Garder le dernier point de chacune des dernières heures qui en ont un.",
            ),
            key(
                "retention.remote.keep_daily",
                "Server: keep daily",
                "Serveur\u{a0}: garder par jour",
                "Garder le dernier point de chacun des derniers jours qui en ont un.",
            ),
            key(
                "retention.remote.keep_weekly",
                "Server: keep weekly",
                "Serveur\u{a0}: garder par semaine",
                "Garder le dernier point de chacune des dernières semaines (lundi à dimanche) qui en ont un.",
            ),
            key(
                "retention.remote.keep_monthly",
                "Server: keep monthly",
                "Serveur\u{a0}: garder par mois",
                "Garder le dernier point de chacun des derniers mois qui en ont un.",
            ),
            key(
                "retention.remote.keep_yearly",
                "Server: keep yearly",
                "Serveur\u{a0}: garder par an",
                "Garder le dernier point de chacune des dernières années qui en ont un.",
            ),
            key(
                "retention.remote.keep_within",
                "Server: keep within",
                "Serveur\u{a0}: garder pendant",
                "Garder chaque point plus récent que cela avant le plus récent\u{a0}: \"30d\", \"1y6m\", \"12h\".",
            ),
        ],
    },
    SettingGroup {
        id: "log",
        english: "Log",
        french: "Journal",
        keys: &[
            key("log.file", "File", "Fichier", "Le fichier du journal."),
            key("log.format", "Format", "Format", "Texte ou JSON."),
            key("log.max_size", "Largest size", "Taille maximale", "Changer de fichier quand il est plus grand."),
            key("log.keep", "Old files", "Anciens fichiers", "Combien d’anciens fichiers garder."),
        ],
    },
    SettingGroup {
        id: "hooks",
        english: "Hooks",
        french: "Crochets",
        keys: &[
            key(
                "hooks.before_run",
                "Before a run",
                "Avant une exécution",
                "Lancés d’abord. Si l’un échoue, aucune machine n’est sauvegardée.",
            ),
            key("hooks.after_run", "After a run", "Après une exécution", "Lancés à la fin, quel que soit le résultat."),
            key(
                "hooks.before_machine",
                "Before a machine",
                "Avant une machine",
                "Lancés avant chaque machine. Si l’un échoue, elle n’est pas sauvegardée.",
            ),
            key(
                "hooks.after_machine",
                "After a machine",
                "Après une machine",
                "Lancés après chaque machine, quel que soit le résultat.",
            ),
        ],
    },
    SettingGroup {
        id: "limits",
        english: "Time limits",
        french: "Délais",
        keys: &[
            key("limits.libvirt", "libvirt", "libvirt", "Délai d’un appel à libvirt."),
            key(
                "limits.backup_begin",
                "Start of a backup",
                "Début d’une sauvegarde",
                "Délai de libvirt et de QEMU pour commencer une sauvegarde.",
            ),
            key(
                "limits.password",
                "Password",
                "Mot de passe",
                "Délai d’une commande qui affiche un mot de passe, ou d’un tube nommé qui en contient un.",
            ),
        ],
    },
];
