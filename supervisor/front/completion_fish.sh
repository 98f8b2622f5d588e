# fish completion for supervise, made by "supervise completion fish"

function __supervise_at --description 'whether the line is after these verbs'
    set -l place /
    set -l words (commandline -opc)
    for word in $words[2..]
        set -l below __supervise_below(string replace -ra '[^a-z]' _ -- $place)
        if contains -- $word $$below
            test $place = / && set place /$word || set place "$place $word"
        end
    end
    test "$place" = "$argv"
end

function __supervise_jobs
    set -l words (commandline -opc)
    set -l which
    for i in (seq 2 (count $words))
        contains -- $words[$i] -n --instance --socket && set which $words[$i] $words[(math $i + 1)]
    end
    $words[1] ps -q $which 2>/dev/null
end

function __supervise_instances
    for socket in $XDG_RUNTIME_DIR/supervise/*/socket /run/supervise/*/socket
        path basename (path dirname $socket)
    end
end

complete -c supervise -f
#TABLES#
