//! The French pages of machines, points, restores, jobs and the log contain no English words.

use super::client::{Page, open};
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

/// Words of the English pages that cannot occur on French ones, whatever commands print.
const ENGLISH: &[&str] = &[
    "Back up",
    "Backed up",
    "Restore ",
    "Verify",
    "Verified",
    "Captured",
    "Consistency",
    "Repository",
    "Disks",
    "Size",
    "Stored",
    "Damage",
    "Where to",
    "Review",
    "Machine and point",
    "Folder",
    "Started",
    "Command line",
    "Do it again",
    "Warnings",
    "Results",
    "Exit code",
    "Everything was done",
    "Selection",
    "Name or pattern",
    "Rule",
    "Take",
    "Leave out",
    "Select",
    "Guest agent",
    "Newest",
    "newest first",
    "None",
    "There is",
    "Filter",
    "Apply",
    "Refresh",
    "ago",
    "Overwrite",
    "Type the name",
    "Previous month",
    "Next month",
    "Monday",
    "November",
    "More options",
    "as configured",
    "yes",
    "no point",
    "Drill",
    "Boot",
    "Recovery time",
    "Reached",
    "guest",
    "Screen",
    "Serial",
    "Goal",
    "would be",
    "is replaced",
    "is copied",
    "unfinished",
    "Continue",
    "Abort",
    "Contains",
    "Level",
    "warnings and errors",
    "Next step",
    "Cancel",
    "Progress",
    "running",
    "shut off",
    "no agent",
    "Pin",
    "pinned",
    "Details",
    "Took",
    "never",
    "only changes",
    "in full",
    "machine was off",
    "GiB",
    "MiB",
    "KiB",
    "Skip to content",
    "Back</a>",
];

/// Returns the text of a page without the output of commands: command lines, names of records, paths, logs and results.
fn words_of(page: &Page) -> String {
    let mut text = page.body.clone();
    for (open, close) in [
        ("<code", "</code>"),
        ("<pre", "</pre>"),
        ("<div class=\"cmd\"", "</div>"),
        ("<div role=\"region\" tabindex=\"0\" aria-label=\"Lignes du journal\" class=\"log\">", "</ol>"),
        ("<li role=\"none\"", "</li>"),
        ("<span class=\"help\"", "</span>"),
        ("<ul class=\"checks\">", "</ul>"),
        ("<a class=\"skip\"", "</a>"),
        ("<svg", "</svg>"),
        ("<title>", "</title>"),
    ] {
        while let Some(from) = text.find(open) {
            let to = text[from..].find(close).map_or(text.len(), |at| from + at + close.len());
            text.replace_range(from..to, " ");
        }
    }
    // Labels in attributes are text too; other attributes are not.
    let labels: Vec<String> =
        page.body.split("aria-label=\"").skip(1).filter_map(|rest| Some(rest.split('"').next()?.to_owned())).collect();
    let mut words = String::new();
    let mut is_tag = false;
    for character in text.chars() {
        match character {
            '<' => (is_tag, words) = (true, words + " "),
            '>' => is_tag = false,
            other if !is_tag => words.push(other),
            _ => {}
        }
    }
    words + " " + &labels.join(" ")
}

#[track_caller]
fn assert_french(page: Page) -> Page {
    let page = page.assert_has("lang=\"fr\"");
    let words = words_of(&page);
    let is_word = |word: &str| {
        words.match_indices(word).any(|(at, found)| {
            let before = words[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric());
            let after = words[at + found.len()..].chars().next().is_none_or(|c| !c.is_alphanumeric());
            before && (after || word.ends_with(' '))
        })
    };
    let found: Vec<&&str> = ENGLISH.iter().filter(|word| is_word(word)).collect();
    assert!(found.is_empty(), "{found:?} in {words}");
    // The space before a colon or a semicolon is non-breaking.
    assert!(!words.contains(" :") && !words.contains(" ;"), "{words}");
    page
}

#[test]
fn french_pages_contain_no_english_words() {
    let env = Env::new("french pages");
    let machine = env.machine(VM).disk(Disk::qcow2(3 * MIB)).disk(Disk::raw(MIB + 512)).define();
    machine.write("vda", 0, MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let mut console = open(&env, &[]);
    console.language = "fr";
    assert_french(console.get("/machines").assert_status(200));
    assert_french(console.post("/backup", &[("m", VM), ("limit_read", "x"), ("of", VM)]).assert_status(422));
    assert_french(console.post("/selection", &[("pattern", ""), ("set", "true")]).assert_status(422));
    let job = console.run_job("/backup", &[("m", VM)], "terminé");
    assert_french(job.assert_has("Tout a été fait."));
    let point = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().record_of("point");
    let id = point["point"].as_str().unwrap();
    let page = assert_french(console.get(&format!("/machines/{VM}?again=1")).assert_status(200));
    page.assert_has("lundi").assert_has("Mois précédent").assert_has("1 point, les plus récents d’abord");
    assert_french(console.get(&format!("/machines/{VM}/drill")).assert_status(200));
    let job = console.run_job("/drill", &[("p", id), ("until", "started")], "terminé");
    assert_french(job.assert_has("Essai de démarrage de ").assert_has("Temps de reprise"));
    assert_french(console.get(&format!("/machines/{VM}/drill?again=1")).assert_status(200)).assert_has("démarrée");
    // Numbers and units follow the rules of the language.
    let page = assert_french(console.get(&format!("/points/{id}")).assert_status(200));
    page.assert_has("3,0\u{202f}Mio").assert_has("machine éteinte").assert_has("sur cet hôte");
    assert_french(console.get(&format!("/restore?machine={VM}")).assert_status(200));
    assert_french(console.get(&format!("/restore/{id}/where")).assert_status(200));
    assert_french(console.get(&format!("/restore/{id}/review?where=copy")).assert_status(422))
        .assert_has("Il faut un nom.");
    let page = assert_french(console.get(&format!("/restore/{id}/review?where=place")).assert_status(200));
    page.assert_has(&format!("Écraser {VM}"));
    assert_french(console.get(&format!("/restore/{id}/review?where=live&format=qcow2")).assert_status(200))
        .assert_has(&format!("Écraser et démarrer {VM}"));
    let start = format!("/restore/{id}/start");
    assert_french(console.post(&start, &[("where", "place"), ("confirm", "x")]).assert_status(422));
    let job = console.run_job(&start, &[("where", "place"), ("confirm", VM)], "terminé");
    assert_french(job.assert_has("Étape suivante"));
    assert_french(console.get("/jobs").assert_status(200));
    assert_french(console.get("/log").assert_status(200));
    // A running job, too.
    let slow = [("m", VM), ("full", "1"), ("limit_read", "64K")];
    let page = console.post("/backup", &slow).assert_status(303);
    let job = page.header("location").to_owned();
    assert_french(console.get(&job).assert_status(200)).assert_has("Annuler");
    console.post(&format!("{job}/cancel"), &[]).assert_status(303);
}
