# aetherscale-cli: completions, made by `make completions`; source it, or put it where your shell looks for them
_aetherscale_cli() {
    local cur=${COMP_WORDS[COMP_CWORD]} last= before= command= context= word i kind words=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == "=" ]]; then continue; fi  # bash makes three words of --context=lab, zsh one
        if [[ $word == --context=* ]]; then context=${word#*=}
        elif [[ $last == --context ]]; then context=$word
        elif [[ -z $command && " create-vm list-vms start-vm stop-vm reboot-vm pause-vm resume-vm resize-vm snapshot-vm restore-vm delete-snapshot list-snapshots extend-vm delete-vm show-vm list-hosts list-images delete-image drain-host undrain-host forget-host clone-vm wait-vm apply doctor list-contexts use-context console-vm logs-vm tunnel-vm ssh-vm import-image completion " == *" $word "* ]]; then command=$word; fi
        last=$word
    done
    if [[ $cur == "=" ]]; then cur=
    elif [[ $cur == --*=* ]]; then last=${cur%%=*} before="${cur%%=*}=" cur=${cur#*=}; fi
    case "$command $last" in
    " -o"|" --output") kind=words words="table wide json yaml name" ;;
    " --timeout") kind=any ;;
    " --context") kind=contexts ;;
    "create-vm -o"|"create-vm --output") kind=words words="table wide json yaml name" ;;
    "create-vm --timeout") kind=any ;;
    "create-vm --context") kind=contexts ;;
    "create-vm --image") kind=images ;;
    "create-vm -f"|"create-vm --file") kind=file ;;
    "create-vm --cpus") kind=any ;;
    "create-vm --memory") kind=any ;;
    "create-vm --disk") kind=any ;;
    "create-vm --vm-id") kind=any ;;
    "create-vm --name") kind=any ;;
    "create-vm --label") kind=any ;;
    "create-vm --ssh-key") kind=file ;;
    "create-vm --user-data") kind=file ;;
    "create-vm --publish") kind=any ;;
    "create-vm --ttl") kind=any ;;
    "create-vm --host") kind=hosts ;;
    "create-vm --host-label") kind=any ;;
    "create-vm --spread") kind=any ;;
    "create-vm --near") kind=any ;;
    "create-vm --wait") kind=words words="running ip ssh cloud-init" ;;
    "create-vm --request-id") kind=any ;;
    "create-vm --wait-for-host") kind=any ;;
    "list-vms -o"|"list-vms --output") kind=words words="table wide json yaml name" ;;
    "list-vms --timeout") kind=any ;;
    "list-vms --context") kind=contexts ;;
    "list-vms --label") kind=any ;;
    "list-vms --state") kind=words words="creating starting running paused stopping stopped deleting failed" ;;
    "list-vms --host") kind=hosts ;;
    "start-vm -o"|"start-vm --output") kind=words words="table wide json yaml name" ;;
    "start-vm --timeout") kind=any ;;
    "start-vm --context") kind=contexts ;;
    "start-vm --vm-id") kind=vms ;;
    "start-vm --wait-for-host") kind=any ;;
    "start-vm --request-id") kind=any ;;
    "stop-vm -o"|"stop-vm --output") kind=words words="table wide json yaml name" ;;
    "stop-vm --timeout") kind=any ;;
    "stop-vm --context") kind=contexts ;;
    "stop-vm --vm-id") kind=vms ;;
    "stop-vm --wait-for-host") kind=any ;;
    "stop-vm --request-id") kind=any ;;
    "reboot-vm -o"|"reboot-vm --output") kind=words words="table wide json yaml name" ;;
    "reboot-vm --timeout") kind=any ;;
    "reboot-vm --context") kind=contexts ;;
    "reboot-vm --vm-id") kind=vms ;;
    "reboot-vm --wait-for-host") kind=any ;;
    "reboot-vm --request-id") kind=any ;;
    "pause-vm -o"|"pause-vm --output") kind=words words="table wide json yaml name" ;;
    "pause-vm --timeout") kind=any ;;
    "pause-vm --context") kind=contexts ;;
    "pause-vm --vm-id") kind=vms ;;
    "pause-vm --wait-for-host") kind=any ;;
    "pause-vm --request-id") kind=any ;;
    "resume-vm -o"|"resume-vm --output") kind=words words="table wide json yaml name" ;;
    "resume-vm --timeout") kind=any ;;
    "resume-vm --context") kind=contexts ;;
    "resume-vm --vm-id") kind=vms ;;
    "resume-vm --wait-for-host") kind=any ;;
    "resume-vm --request-id") kind=any ;;
    "resize-vm -o"|"resize-vm --output") kind=words words="table wide json yaml name" ;;
    "resize-vm --timeout") kind=any ;;
    "resize-vm --context") kind=contexts ;;
    "resize-vm --vm-id") kind=vms ;;
    "resize-vm --wait-for-host") kind=any ;;
    "resize-vm --request-id") kind=any ;;
    "resize-vm --cpus") kind=any ;;
    "resize-vm --memory") kind=any ;;
    "resize-vm --disk") kind=any ;;
    "snapshot-vm -o"|"snapshot-vm --output") kind=words words="table wide json yaml name" ;;
    "snapshot-vm --timeout") kind=any ;;
    "snapshot-vm --context") kind=contexts ;;
    "snapshot-vm --vm-id") kind=vms ;;
    "snapshot-vm --wait-for-host") kind=any ;;
    "snapshot-vm --request-id") kind=any ;;
    "restore-vm -o"|"restore-vm --output") kind=words words="table wide json yaml name" ;;
    "restore-vm --timeout") kind=any ;;
    "restore-vm --context") kind=contexts ;;
    "restore-vm --vm-id") kind=vms ;;
    "restore-vm --wait-for-host") kind=any ;;
    "restore-vm --request-id") kind=any ;;
    "delete-snapshot -o"|"delete-snapshot --output") kind=words words="table wide json yaml name" ;;
    "delete-snapshot --timeout") kind=any ;;
    "delete-snapshot --context") kind=contexts ;;
    "delete-snapshot --vm-id") kind=vms ;;
    "delete-snapshot --wait-for-host") kind=any ;;
    "delete-snapshot --request-id") kind=any ;;
    "list-snapshots -o"|"list-snapshots --output") kind=words words="table wide json yaml name" ;;
    "list-snapshots --timeout") kind=any ;;
    "list-snapshots --context") kind=contexts ;;
    "list-snapshots --vm-id") kind=vms ;;
    "list-snapshots --wait-for-host") kind=any ;;
    "extend-vm -o"|"extend-vm --output") kind=words words="table wide json yaml name" ;;
    "extend-vm --timeout") kind=any ;;
    "extend-vm --context") kind=contexts ;;
    "extend-vm --vm-id") kind=vms ;;
    "extend-vm --wait-for-host") kind=any ;;
    "extend-vm --request-id") kind=any ;;
    "extend-vm --ttl") kind=any ;;
    "delete-vm -o"|"delete-vm --output") kind=words words="table wide json yaml name" ;;
    "delete-vm --timeout") kind=any ;;
    "delete-vm --context") kind=contexts ;;
    "delete-vm --vm-id") kind=vms ;;
    "delete-vm --wait-for-host") kind=any ;;
    "delete-vm --request-id") kind=any ;;
    "show-vm -o"|"show-vm --output") kind=words words="table wide json yaml name" ;;
    "show-vm --timeout") kind=any ;;
    "show-vm --context") kind=contexts ;;
    "show-vm --vm-id") kind=vms ;;
    "show-vm --wait-for-host") kind=any ;;
    "show-vm --console-lines") kind=any ;;
    "list-hosts -o"|"list-hosts --output") kind=words words="table wide json yaml name" ;;
    "list-hosts --timeout") kind=any ;;
    "list-hosts --context") kind=contexts ;;
    "list-images -o"|"list-images --output") kind=words words="table wide json yaml name" ;;
    "list-images --timeout") kind=any ;;
    "list-images --context") kind=contexts ;;
    "delete-image -o"|"delete-image --output") kind=words words="table wide json yaml name" ;;
    "delete-image --timeout") kind=any ;;
    "delete-image --context") kind=contexts ;;
    "delete-image --host") kind=hosts ;;
    "drain-host -o"|"drain-host --output") kind=words words="table wide json yaml name" ;;
    "drain-host --timeout") kind=any ;;
    "drain-host --context") kind=contexts ;;
    "undrain-host -o"|"undrain-host --output") kind=words words="table wide json yaml name" ;;
    "undrain-host --timeout") kind=any ;;
    "undrain-host --context") kind=contexts ;;
    "forget-host -o"|"forget-host --output") kind=words words="table wide json yaml name" ;;
    "forget-host --timeout") kind=any ;;
    "forget-host --context") kind=contexts ;;
    "clone-vm -o"|"clone-vm --output") kind=words words="table wide json yaml name" ;;
    "clone-vm --timeout") kind=any ;;
    "clone-vm --context") kind=contexts ;;
    "clone-vm --cpus") kind=any ;;
    "clone-vm --memory") kind=any ;;
    "clone-vm --disk") kind=any ;;
    "clone-vm --vm-id") kind=any ;;
    "clone-vm --name") kind=any ;;
    "clone-vm --label") kind=any ;;
    "clone-vm --ssh-key") kind=file ;;
    "clone-vm --user-data") kind=file ;;
    "clone-vm --publish") kind=any ;;
    "clone-vm --ttl") kind=any ;;
    "clone-vm --host") kind=hosts ;;
    "clone-vm --host-label") kind=any ;;
    "clone-vm --spread") kind=any ;;
    "clone-vm --near") kind=any ;;
    "clone-vm --wait") kind=words words="running ip ssh cloud-init" ;;
    "clone-vm --request-id") kind=any ;;
    "wait-vm -o"|"wait-vm --output") kind=words words="table wide json yaml name" ;;
    "wait-vm --timeout") kind=any ;;
    "wait-vm --context") kind=contexts ;;
    "wait-vm --vm-id") kind=vms ;;
    "wait-vm --for") kind=words words="running ip ssh cloud-init" ;;
    "apply -o"|"apply --output") kind=words words="table wide json yaml name" ;;
    "apply --timeout") kind=any ;;
    "apply --context") kind=contexts ;;
    "apply -f"|"apply --file") kind=file ;;
    "apply --label") kind=any ;;
    "doctor -o"|"doctor --output") kind=words words="table wide json yaml name" ;;
    "doctor --timeout") kind=any ;;
    "doctor --context") kind=contexts ;;
    "doctor --wait-images") kind=any ;;
    "list-contexts -o"|"list-contexts --output") kind=words words="table wide json yaml name" ;;
    "list-contexts --timeout") kind=any ;;
    "list-contexts --context") kind=contexts ;;
    "use-context --timeout") kind=any ;;
    "use-context --context") kind=contexts ;;
    "console-vm --timeout") kind=any ;;
    "console-vm --context") kind=contexts ;;
    "console-vm -n"|"console-vm --lines") kind=any ;;
    "logs-vm --timeout") kind=any ;;
    "logs-vm --context") kind=contexts ;;
    "logs-vm -n"|"logs-vm --lines") kind=any ;;
    "tunnel-vm --timeout") kind=any ;;
    "tunnel-vm --context") kind=contexts ;;
    "ssh-vm --timeout") kind=any ;;
    "ssh-vm --context") kind=contexts ;;
    "ssh-vm --user"|"ssh-vm -l") kind=any ;;
    "ssh-vm --port"|"ssh-vm -p") kind=any ;;
    "ssh-vm -i") kind=any ;;
    "import-image -o"|"import-image --output") kind=words words="table wide json yaml name" ;;
    "import-image --timeout") kind=any ;;
    "import-image --context") kind=contexts ;;
    "import-image --name") kind=images ;;
    "import-image --sha256") kind=any ;;
    "import-image --host") kind=any ;;
    "completion --timeout") kind=any ;;
    "completion --context") kind=contexts ;;
    *) kind= ;;
    esac
    if [[ -z $kind && $cur == -* ]]; then
        kind=words
        case $command in
        "") words="-h --help -o --output --timeout --context --debug --version" ;;
        "create-vm") words="-h --help -o --output --timeout --context --debug --image -f --file --cpus --memory --disk --vm-id --name --label --ssh-key --no-ssh-key --user-data --publish --ttl --host --host-label --spread --near --dry-run --wait --request-id --wait-for-host" ;;
        "list-vms") words="-h --help -o --output --timeout --context --debug --label --state --host" ;;
        "start-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id" ;;
        "stop-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id --kill" ;;
        "reboot-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id --kill" ;;
        "pause-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id" ;;
        "resume-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id" ;;
        "resize-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id --cpus --memory --disk" ;;
        "snapshot-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id" ;;
        "restore-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id" ;;
        "delete-snapshot") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id" ;;
        "list-snapshots") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host" ;;
        "extend-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id --ttl" ;;
        "delete-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --request-id --if-exists" ;;
        "show-vm") words="-h --help -o --output --timeout --context --debug --vm-id --wait-for-host --console-lines" ;;
        "list-hosts") words="-h --help -o --output --timeout --context --debug" ;;
        "list-images") words="-h --help -o --output --timeout --context --debug" ;;
        "delete-image") words="-h --help -o --output --timeout --context --debug --host" ;;
        "drain-host") words="-h --help -o --output --timeout --context --debug" ;;
        "undrain-host") words="-h --help -o --output --timeout --context --debug" ;;
        "forget-host") words="-h --help -o --output --timeout --context --debug --yes" ;;
        "clone-vm") words="-h --help -o --output --timeout --context --debug --cpus --memory --disk --vm-id --name --label --ssh-key --no-ssh-key --user-data --publish --ttl --host --host-label --spread --near --wait --request-id" ;;
        "wait-vm") words="-h --help -o --output --timeout --context --debug --vm-id --for" ;;
        "apply") words="-h --help -o --output --timeout --context --debug -f --file --diff --prune --label --yes" ;;
        "doctor") words="-h --help -o --output --timeout --context --debug --wait-images --strict" ;;
        "list-contexts") words="-h --help -o --output --timeout --context --debug" ;;
        "use-context") words="-h --help --timeout --context --debug" ;;
        "console-vm") words="-h --help --timeout --context --debug -n --lines" ;;
        "logs-vm") words="-h --help --timeout --context --debug -f --follow -n --lines" ;;
        "tunnel-vm") words="-h --help --timeout --context --debug" ;;
        "ssh-vm") words="-h --help --timeout --context --debug --user -l --port -p -i" ;;
        "import-image") words="-h --help -o --output --timeout --context --debug --name --sha256 --host" ;;
        "completion") words="-h --help --timeout --context --debug" ;;
        esac
    elif [[ -z $kind ]]; then
        case $command in
        "") kind=words words="create-vm list-vms start-vm stop-vm reboot-vm pause-vm resume-vm resize-vm snapshot-vm restore-vm delete-snapshot list-snapshots extend-vm delete-vm show-vm list-hosts list-images delete-image drain-host undrain-host forget-host clone-vm wait-vm apply doctor list-contexts use-context console-vm logs-vm tunnel-vm ssh-vm import-image completion" ;;
        start-vm) kind=vms ;;
        stop-vm) kind=vms ;;
        reboot-vm) kind=vms ;;
        pause-vm) kind=vms ;;
        resume-vm) kind=vms ;;
        resize-vm) kind=vms ;;
        snapshot-vm) kind=vms ;;
        restore-vm) kind=vms ;;
        delete-snapshot) kind=vms ;;
        list-snapshots) kind=vms ;;
        extend-vm) kind=vms ;;
        delete-vm) kind=vms ;;
        show-vm) kind=vms ;;
        delete-image) kind=images ;;
        drain-host) kind=hosts ;;
        undrain-host) kind=hosts ;;
        forget-host) kind=hosts ;;
        clone-vm) kind=vms ;;
        wait-vm) kind=vms ;;
        use-context) kind=contexts ;;
        console-vm) kind=vms ;;
        logs-vm) kind=vms ;;
        tunnel-vm) kind=vms ;;
        ssh-vm) kind=vms ;;
        import-image) kind=any ;;
        completion) kind=words words="bash zsh fish" ;;
        esac
    fi
    case $kind in
    vms|hosts|images|contexts) words=$(aetherscale-cli __complete "$kind" ${context:+--context "$context"} 2>/dev/null) ;;
    file)
        COMPREPLY=($(if [[ $before ]]; then compgen -P "$before" -G "$cur*"; else compgen -f -- "$cur"; fi))
        return ;;
    words) ;;
    *) COMPREPLY=(); return ;;
    esac
    COMPREPLY=($(compgen -P "$before" -W "$words" -- "$cur"))
}
complete -F _aetherscale_cli aetherscale-cli
