#compdef supervise
# zsh completion for supervise, made by "supervise completion zsh"

typeset -gA _supervise_verbs _supervise_flags _supervise_takes
#TABLES#

_supervise_values() { # what a flag or an argument takes
    local -a which names
    local i
    case $1 in
        (\=*) compadd -- ${=${1#\=}} ;;
        (JOB)
            for ((i = 2; i < CURRENT; i++)); do
                case ${words[i]} in
                    (-n|--instance|--socket) which+=("${words[i]}" "${words[i + 1]}") ;;
                esac
            done
            names=("${(@f)$(${words[1]} ps -q ${which[@]} 2>/dev/null)}")
            compadd -- ${names:#}
            ;;
        (INSTANCE)
            names=(${XDG_RUNTIME_DIR:-/nowhere}/supervise/*/socket(N=:h:t) /run/supervise/*/socket(N=:h:t))
            compadd -- $names
            ;;
        (?*) _files ;;
    esac
}

_supervise() {
    local place=/ last="" word
    for word in "${(@)words[2,CURRENT-1]}"; do
        last=$word
        if [[ " ${_supervise_verbs[$place]} " == *" $word "* ]]; then
            [[ $place == / ]] && place=/$word || place+=" $word"
        fi
    done
    if [[ $last == -* && -n ${_supervise_takes[$place $last]} ]]; then
        _supervise_values "${_supervise_takes[$place $last]}"
    elif [[ ${words[CURRENT]} == -* ]]; then
        compadd -- ${=_supervise_flags[$place]}
    else
        compadd -- ${=_supervise_verbs[$place]}
        if [[ $place == / ]]; then
            _files
        else
            _supervise_values "${_supervise_takes[$place]}"
        fi
    fi
}

if [[ ${funcstack[1]} == _supervise ]]; then
    _supervise "$@" # from a directory of $fpath, at the first use
else
    compdef _supervise supervise
fi
