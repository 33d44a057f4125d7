//! The scripts for bash and zsh. clap's own scripts, which only fish uses, do not know that `vm1@latest` is a single
//! word in bash, nor that more follows after `vda=`.

use clap_complete::env::{self, EnvCompleter};
use std::ffi::OsString;
use std::io::{Result, Write};
use std::path::Path;

/// A shell that uses our script, and clap's answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScriptedShell<S> {
    shell: S,
    script: &'static str,
}

pub(crate) const BASH: ScriptedShell<env::Bash> = ScriptedShell { shell: env::Bash, script: BASH_SCRIPT };

pub(crate) const ZSH: ScriptedShell<env::Zsh> = ScriptedShell { shell: env::Zsh, script: ZSH_SCRIPT };

const BASH_SCRIPT: &str = r#"_NAME() {
    local line=${COMP_LINE:0:COMP_POINT} words=() word gap typed i
    # What stands together on the line is one word, although bash takes it apart at '@', ':' and '='.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        gap=${line%%[![:blank:]]*}
        line=${line#"$gap"}
        ((i < COMP_CWORD)) || word=$line
        line=${line#"$word"}
        if [[ $i -eq 0 || -n $gap ]]; then words+=("$word"); else words[${#words[@]}-1]+=$word; fi
    done
    i=$((${#words[@]} - 1))
    # Bash replaces its own last piece of the word: what stands before it stays.
    typed=${words[i]%"$2"}
    # A name with a space was completed with a backslash before it.
    typed=${typed//\\/}
    words=("${words[@]//\\/}")
    COMPREPLY=()
    while IFS= read -r word; do
        [[ -n $word ]] || continue
        # Flags are offered only after a hyphen.
        [[ $word != -* || ${words[i]} == -* ]] || continue
        printf -v word %q "${word#"$typed"}"
        COMPREPLY+=("$word")
    done < <(VAR=bash _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$i COMPLETER -- "${words[@]}" 2>/dev/null && echo)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/@] ]]; then compopt -o nospace; fi
}
complete -o nosort -F _NAME BIN
"#;

const ZSH_SCRIPT: &str = r#"#compdef BIN
_NAME() {
    local -a found whole open
    local word
    local index=$((CURRENT - 1))
    # As they are meant, without quotes.
    found=("${(@f)$(VAR=zsh _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$index COMPLETER -- "${(@Q)words}" 2>/dev/null)}")
    for word in $found; do
        # What it is stands behind a colon; those in the word have a backslash.
        if [[ ${${word//\\:/_}%%:*} == *[=/@\\] ]]; then open+=($word); else whole+=($word); fi
    done
    # More is to come behind these.
    (($#open)) && _describe -V 'values' open -S ''
    (($#whole)) && _describe -V 'values' whole
}
# Loaded by itself, this file is the function that is wanted now.
if [[ ${funcstack[1]} == _NAME ]]; then _NAME "$@"; else compdef _NAME BIN; fi
"#;

impl<S: EnvCompleter> EnvCompleter for ScriptedShell<S> {
    fn name(&self) -> &'static str {
        self.shell.name()
    }

    fn is(&self, name: &str) -> bool {
        self.shell.is(name)
    }

    fn write_registration(&self, var: &str, name: &str, bin: &str, completer: &str, to: &mut dyn Write) -> Result<()> {
        let script = self.script.replace("NAME", name).replace("COMPLETER", completer);
        to.write_all(script.replace("BIN", bin).replace("VAR", var).as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        to: &mut dyn Write,
    ) -> Result<()> {
        self.shell.write_complete(command, words, folder, to)
    }
}
