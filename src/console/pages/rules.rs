//! The rules of the configuration that select machines and disks for backups, and what each of them matches.

use super::fields::FieldErrors;
use super::settings::settings_of;
use crate::console::html;
use crate::console::visit::Visit;
use crate::glob;
use maud::{Markup, html};
use serde_json::Value;
use std::collections::BTreeMap;

/// The rules of the configuration for machines and disks.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// `selected_vms`: names and patterns, and whether they are included.
    pub(super) machines: BTreeMap<String, bool>,
    /// `excluded_disks`.
    pub(super) disks: BTreeMap<String, Vec<String>>,
}

impl Rules {
    /// Returns the current rules.
    pub(super) async fn of(visit: &Visit, again: bool) -> Rules {
        let answer = visit.console.toolbox.look_up(&["config", "show"], again).await;
        let mut rules = Rules::default();
        for setting in settings_of(&answer) {
            let entries = setting.value.as_object().into_iter().flatten();
            match setting.key.as_str() {
                "selected_vms" => {
                    rules.machines =
                        entries.filter_map(|(name, value)| Some((name.clone(), value.as_bool()?))).collect()
                }
                "excluded_disks" => {
                    let disks = |value: &Value| {
                        let list = value.as_array()?;
                        Some(list.iter().filter_map(|disk| disk.as_str().map(str::to_owned)).collect())
                    };
                    rules.disks = entries.filter_map(|(name, value)| Some((name.clone(), disks(value)?))).collect();
                }
                _ => {}
            }
        }
        rules
    }

    /// Returns the rule that decides about a machine. A rule that excludes takes precedence.
    fn deciding(&self, machine: &str) -> Option<(&str, bool)> {
        let matching = self.machines.iter().filter(|(pattern, _)| matches(pattern, machine));
        let mut found: Vec<(&str, bool)> = matching.map(|(pattern, taken)| (pattern.as_str(), *taken)).collect();
        found.sort_by_key(|(_, taken)| *taken);
        found.first().copied()
    }

    /// Returns a rule, other than the machine's own, that excludes one of its disks.
    fn excluding(&self, machine: &str, disk: &str) -> Option<&str> {
        let others = self.disks.iter().filter(|(pattern, _)| *pattern != machine && matches(pattern, machine));
        others.filter(|(_, disks)| disks.iter().any(|known| known == disk)).map(|(pattern, _)| pattern.as_str()).next()
    }

    /// Describes why a machine is backed up or not.
    pub(super) fn reason(&self, visit: &Visit, machine: &str) -> String {
        let language = visit.language;
        match self.deciding(machine) {
            Some((rule, true)) => language.say(format!("rule {rule}: include"), format!("règle {rule}\u{a0}: prendre")),
            Some((rule, false)) => {
                let wins = self.machines.iter().any(|(other, taken)| *taken && matches(other, machine));
                match wins {
                    true => language.say(
                        format!("rule {rule}: exclude, which takes precedence"),
                        format!("règle {rule}\u{a0}: laisser de côté, ce qui l’emporte"),
                    ),
                    false => {
                        language.say(format!("rule {rule}: exclude"), format!("règle {rule}\u{a0}: laisser de côté"))
                    }
                }
            }
            None if self.machines.is_empty() => String::new(),
            None => visit.say("no rule includes it", "aucune règle ne la prend").to_owned(),
        }
    }
}

/// Whether a name or pattern of the configuration matches this machine.
pub(super) fn matches(pattern: &str, machine: &str) -> bool {
    pattern == machine || (glob::is_glob(pattern) && glob::matches(pattern, machine))
}

/// Returns the rules, what each matches, and the form for a new one. `known` are the machines of this host.
pub(super) fn rules_section(visit: &Visit, rules: &Rules, known: &[&str], errors: &FieldErrors) -> Markup {
    let matching = |pattern: &str| known.iter().copied().filter(|name| matches(pattern, name)).collect::<Vec<_>>();
    let names = |pattern: &str| {
        let names = matching(pattern);
        if names.is_empty() { visit.say("none", "aucune").to_owned() } else { names.join(", ") }
    };
    let row = |(pattern, taken): (&String, &bool)| {
        vec![
            html! { code class="brk" { (pattern) } },
            html! {
                @if *taken { span class="st ok" { (html::icon("ok")) (visit.say("include", "prendre")) } }
                @else { span class="st quiet" { (html::icon("off")) (visit.say("exclude", "laisser de côté")) } }
            },
            html! { span class="brk" { (names(pattern)) } },
            html! {
                @if visit.may_change() {
                    form method="post" action="/selection" {
                        (html::form_token(visit))
                        input type="hidden" name="unset" value=(pattern);
                        @let remove = visit.say("Remove", "Retirer");
                        button type="submit" class="small" aria-label={(remove) " " (pattern)} { (remove) }
                    }
                }
            },
        ]
    };
    let heads = [
        visit.say("Name or pattern", "Nom ou motif"),
        visit.say("Rule", "Règle"),
        visit.say("Machines now", "Machines actuelles"),
        visit.say("Change", "Changer"),
    ];
    let typed = visit.form.get("pattern").or_else(|| visit.query.get("pattern"));
    html! {
        section class="sec" id="rules" {
            h2 { (visit.say("Selection by rules", "Choix par règles")) }
            p class="sub" {
                (visit.say(
                    "selected_vms of the configuration. A rule that excludes takes precedence over one that includes.",
                    "selected_vms de la configuration. Une règle qui écarte l’emporte sur une règle qui prend.",
                ))
            }
            @if rules.machines.is_empty() {
                p { (visit.say("There is no rule yet.", "Il n’y a encore aucune règle.")) }
            } @else {
                (html::table(visit.say("Rules", "Règles"), &heads, rules.machines.iter().map(row).collect()))
            }
            // A preview changes nothing. It shares this form so that the pattern is typed only once.
            @let (method, action) = if visit.may_change() { ("post", "/selection") } else { ("get", "/machines") };
            form method=(method) action=(action) class="formend" {
                @if visit.may_change() { (html::form_token(visit)) }
                div class="row" {
                    div class="field" {
                        label for="pattern" {
                            (visit.say("Name or pattern, with * and ?", "Nom ou motif, avec * et ?"))
                        }
                        input id="pattern" name="pattern" class="w-m mono" placeholder="web*" autocomplete="off"
                            value=(typed.unwrap_or_default())
                            aria-invalid=[errors.of("pattern").map(|_| "true")]
                            aria-describedby=[errors.of("pattern").map(|_| "pattern-e")];
                        @if let Some(error) = errors.of("pattern") {
                            p class="err" id="pattern-e" { (html::icon("crit")) span class="brk" { (error) } }
                        }
                    }
                    button type="submit" name="preview" value="1" {
                        (visit.say("Show what it matches", "Voir ce qu’il désigne"))
                    }
                    @if visit.may_change() {
                        button type="submit" name="set" value="true" {
                            (visit.say("Add: include", "Ajouter\u{a0}: prendre"))
                        }
                        button type="submit" name="set" value="false" {
                            (visit.say("Add: exclude", "Ajouter\u{a0}: laisser de côté"))
                        }
                    }
                }
            }
            @if let Some(pattern) = visit.query.get("pattern") {
                div class="note" role="status" {
                    p class="brk" { code { (pattern) } ": " (names(pattern)) }
                }
                (html::command(visit, &["vms", "--", pattern]))
            }
        }
    }
}

/// Returns the disks of a machine as checkboxes: the ticked ones are backed up.
pub(super) fn disks_form(visit: &Visit, rules: &Rules, machine: &str, disks: &[&crate::record::Disk]) -> Markup {
    let size = |disk: &crate::record::Disk| {
        disk.capacity_bytes.map_or_else(|| "?".to_owned(), |bytes| visit.language.bytes(bytes))
    };
    let own = rules.disks.get(machine);
    let is_own = |disk: &str| own.is_some_and(|own| own.iter().any(|known| known == disk));
    html! {
        form method="post" action="/machines/disks" class="sec" {
            (html::form_token(visit))
            input type="hidden" name="of" value=(machine);
            fieldset class="opts" {
                legend { (visit.say("Disks that are backed up", "Disques sauvegardés")) }
                @for disk in disks {
                    @let rule = rules.excluding(machine, &disk.disk);
                    @let is_chosen = disk.included || is_own(&disk.disk);
                    @if is_chosen && rule.is_none() && visit.may_change() {
                        input type="hidden" name="all" value=(disk.disk);
                        label class="check" {
                            input type="checkbox" name="d" value=(disk.disk) checked[disk.included];
                            span {
                                (disk.disk) ", " (size(disk))
                                @if let Some(path) = &disk.path { " " code class="brk quiet" { (path) } }
                            }
                        }
                    } @else {
                        p {
                            @if disk.included { span class="st ok" { (html::icon("ok")) (disk.disk) } }
                            @else { span class="st quiet" { (html::icon("off")) (disk.disk) } }
                            ", " (size(disk))
                            @if let Some(rule) = rule {
                                ": " (visit.say("left out by the rule ", "écarté par la règle ")) code { (rule) }
                            } @else if let Some(reason) = &disk.skip_reason {
                                span class="brk" { ": " (visit.say("left out: ", "laissé de côté\u{a0}: ")) (reason) }
                            }
                        }
                    }
                }
            }
            @if visit.may_change() {
                div class="row" {
                    button type="submit" { (visit.say("Review the change", "Voir le changement")) }
                }
            }
            @if let Some(last) = disks.last() {
                @let change = format!("excluded_disks.{machine}={}", Value::from(vec![last.disk.as_str()]));
                (html::command(visit, &["config", "set", "--", &change]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusion_overrides_inclusion() {
        let rules = Rules {
            machines: [("web*".into(), true), ("web-test".into(), false), ("a[".into(), true)].into(),
            disks: [("web*".into(), vec!["vdb".into()]), ("web1".into(), vec!["vdc".into()])].into(),
        };
        assert_eq!(rules.deciding("web1"), Some(("web*", true)));
        assert_eq!(rules.deciding("web-test"), Some(("web-test", false)));
        assert_eq!(rules.deciding("db"), None);
        assert_eq!(rules.excluding("web1", "vdb"), Some("web*"));
        assert_eq!(rules.excluding("web1", "vdc"), None, "its own rule is what the form changes");
    }
}
