_kvmb() {
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
    done < <(KVMB_COMPLETE=bash _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$i kvmb -- "${words[@]}" 2>/dev/null && echo)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/@] ]]; then compopt -o nospace; fi
}
complete -o nosort -F _kvmb kvmb
