# bash completion for supervise, made by "supervise completion bash"

declare -gA _supervise_verbs _supervise_flags _supervise_takes
#TABLES#

# the instance that the line names, as flags
_supervise_instance() {
    local i
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        case ${words[i]} in
            -n | --instance | --socket) printf '%s\n' "${words[i]}" "${words[i + 1]}" ;;
        esac
    done
}

_supervise_offer() { # WORD...: those that begin as what is being typed
    local word
    for word; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
    done
}

_supervise_files() {
    local file
    compopt -o filenames 2>/dev/null
    while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$cur")
}

_supervise_values() { # what a flag or an argument takes
    local -a which names
    case $1 in
        =*) _supervise_offer ${1#=} ;;
        JOB)
            mapfile -t which < <(_supervise_instance)
            mapfile -t names < <("${words[0]}" ps -q "${which[@]}" 2>/dev/null)
            _supervise_offer "${names[@]}"
            ;;
        INSTANCE)
            local socket
            for socket in "${XDG_RUNTIME_DIR:-/nowhere}"/supervise/*/socket /run/supervise/*/socket; do
                [[ -S $socket ]] && socket=${socket%/socket} && _supervise_offer "${socket##*/}"
            done
            ;;
        ?*) _supervise_files ;;
    esac
}

_supervise() {
    local line=${COMP_LINE:0:COMP_POINT} place=/ cur last="" word cut
    local -a words
    read -ra words <<<"$line"
    cur=${line##*[[:space:]]}
    [[ -z $cur ]] && words+=("")
    COMPREPLY=()
    for word in "${words[@]:1:${#words[@]}-2}"; do
        last=$word
        if [[ " ${_supervise_verbs[$place]} " == *" $word "* ]]; then
            [[ $place == / ]] && place=/$word || place+=" $word"
        fi
    done
    if [[ $last == -* && -n ${_supervise_takes[$place $last]} ]]; then
        _supervise_values "${_supervise_takes[$place $last]}"
    elif [[ $cur == -* ]]; then
        _supervise_offer ${_supervise_flags[$place]}
    else
        _supervise_offer ${_supervise_verbs[$place]}
        if [[ $place == / ]]; then
            _supervise_files
        else
            _supervise_values "${_supervise_takes[$place]}"
        fi
    fi
    # readline takes what follows the last "=" or ":" for the word
    cut=${cur%"${cur##*[=:]}"}
    [[ -n $cut ]] && COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    return 0
}

complete -F _supervise supervise
