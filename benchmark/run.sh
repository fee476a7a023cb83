#!/usr/bin/env bash
# Launch a grid of seeded runs: every setting in every environment with every seed, as one queue.
#
#   benchmark/run.sh --script ddpg_continuous.py --env-ids HopperBulletEnv-v0 AntBulletEnv-v0 \
#       --vary gamma 0.98 0.99 --seeds 1 2 3 --workers 2 -- --anneal-lr
#
#   --script FILE      the script to run
#   --env-ids ID ...   environments
#   --seeds N ...      seeds (default: 1 2 3)
#   --setting NAME "FLAGS"  runs of this name, whose flags override those after --; --script and
#                      --env-ids among them replace those above. Repeatable
#   --vary FLAG VALUE ...   one setting for each value, named {name}_{FLAG}{VALUE}. Repeatable, and
#                      added to the other settings
#   --workers N        runs at the same time, on a cluster too (default: 1)
#   --shortest-first   begin with the runs of the fewest steps
#   --backend NAME     local: processes here, with one thread each (OMP_NUM_THREADS changes that)
#                      slurm: one array of jobs; benchmark/slurm.sh holds its #SBATCH lines
#                      ray: jobs on the cluster that RAY_ADDRESS names, by `ray job submit`
#   --runs-dir DIR     where the runs go (default: runs); the machines of a cluster must share it
#   --name NAME        name of the runs without --setting (default: the script's name)
#   --track            log to Weights & Biases
#   --dry-run          print what would be done
#   --smoke            a thousandth of the length, at least 1,100 steps, in DIR/smoke
#   -- FLAGS           all that follows goes to the script
#
# A run is in DIR/{environment}__{name}__{seed}. Give the same command again after any interruption:
# finished runs are skipped, interrupted ones are resumed, failed ones are tried again. Ctrl-C lets
# the runs save and stops them; a second one ends them at once. PYTHON names the interpreter.
# Exit code: 0 all finished, 1 some failed, 2 bad input, 130 or 143 stopped.
set -efo pipefail # f: no word is a pattern of file names

root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
script='' envs=() seeds=(1 2 3) workers=1 backend=local runs_dir=runs name='' common=()
setting_names=() setting_flags=() shortest_first='' dry_run='' smoke='' only=''
python=${PYTHON:-python}
if [[ -z $PYTHON && -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
arguments=("$@")

fail() {
    echo "run.sh: $1" >&2
    exit 2
}

take_list() { # the words up to the next flag, into the array `list`
    list=()
    while (($#)) && [[ $1 != --* ]]; do list+=("$1") && shift; done
    ((${#list[@]})) || fail "$flag needs at least one value"
}

while (($#)); do
    flag=$1 && shift
    case $flag in
        --script | --workers | --backend | --runs-dir | --name | --only)
            (($#)) || fail "$flag needs a value"
            variable=${flag#--}
            printf -v "${variable//-/_}" %s "$1" && shift ;;
        --env-ids) take_list "$@" && envs=("${list[@]}") && shift ${#list[@]} ;;
        --seeds) take_list "$@" && seeds=("${list[@]}") && shift ${#list[@]} ;;
        --setting)
            (($# > 1)) || fail "--setting needs a name and the flags of the script, as one word"
            setting_names+=("$1") setting_flags+=("$2") && shift 2 ;;
        --vary)
            varied=${1#--} && take_list "${@:2}" && shift $((1 + ${#list[@]}))
            for value in "${list[@]}"; do # + stands for the name, as --name may follow
                setting_names+=("+_${varied//-/_}${value// /x}")
                setting_flags+=("--$varied $value")
            done ;;
        --track) common+=(--track) ;;
        --dry-run | --smoke | --shortest-first) printf -v "$(tr - _ <<< "${flag#--}")" 1 ;;
        --) common+=("$@") && break ;;
        -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "$0" && exit ;;
        *) fail "$flag is not a flag of run.sh; the script's own follow -- (--help shows all)" ;;
    esac
done

((${#setting_names[@]})) || setting_names=(+) setting_flags=('')
[[ $workers =~ ^[1-9][0-9]*$ ]] || fail "--workers is $workers, and must be a number from 1"
[[ ${seeds[*]} =~ ^[0-9\ ]+$ ]] || fail "--seeds has ${seeds[*]}; it takes whole numbers from 0"
[[ -z $only ]] || backend=local # this is a job of slurm or ray, and does one run
case $backend in
    local) program=$python ;;
    slurm) program=sbatch ;;
    ray) program=ray ;; # pip install 'ray[default]'
    *) fail "--backend is $backend, and must be local, slurm or ray" ;;
esac
[[ -n $dry_run ]] || command -v "$program" > /dev/null ||
    fail "there is no $program here (the variable PYTHON names the interpreter)"

# What printf quotes, and how, depends on the locale, and the commands of the runs must not.
quote() { local LC_ALL=C && printf '%q ' "$@"; }

# A number among the script's flags.
default_of() { sed -n "s/^    $1: [^=]*= \([0-9_]*\).*/\1/p" "$run_script" | tr -d _; }

shorten() { # the lengths among the flags, given or the script's own
    local k divisor least value
    for k in learning_starts total_timesteps; do
        [[ -z $(default_of $k) ]] || flags=("--${k//_/-}" "$(default_of $k)" "${flags[@]}")
    done
    for k in "${!flags[@]}"; do
        value=${flags[k + 1]} least=1
        case ${flags[k]} in
            --*-timesteps) divisor=1000 least=1100 ;; # a rollout or more
            --*-starts | --*-decay-steps | --*-decay-episodes) divisor=1000 ;;
            --*-interval) divisor=100 ;; # so that evaluations do not take all the time
            *) continue ;;
        esac
        [[ $value =~ ^[0-9]+$ ]] || fail "${flags[k]} is $value; --smoke takes whole numbers"
        ((value < least)) || flags[k + 1]=$((value / divisor > least ? value / divisor : least))
    done
    flags+=(--eval-episodes 1 --no-compile)
}

# The grid: run i is run_scripts[i], for run_steps[i] steps. run_texts[i] is its command, quoted: it
# is kept beside the run, so that a folder never mixes two.
[[ -z $smoke ]] || runs_dir=$runs_dir/smoke
run_dirs=() run_scripts=() run_texts=() run_steps=()
for s in "${!setting_names[@]}"; do
    run_script=$script run_envs=("${envs[@]}") flags=()
    set -- "${common[@]}" ${setting_flags[s]}
    while (($#)); do
        case $1 in
            --script) run_script=$2 && shift ;;
            --env-ids) take_list "${@:2}" && run_envs=("${list[@]}") && shift ${#list[@]} ;;
            --*=*) flags+=("${1%%=*}" "${1#*=}") ;;
            *) flags+=("$1") ;;
        esac
        shift
    done
    [[ -f $run_script ]] || run_script=$root/$run_script
    [[ -f $run_script ]] || fail "there is no script ${run_script#"$root"/}, as of --script"
    ((${#run_envs[@]})) || fail "--env-ids needs at least one environment: HopperBulletEnv-v0"
    run_name=${setting_names[s]/#+/${name:-$(basename "$run_script" .py)}}
    [[ -z $smoke ]] || shorten
    steps=$(printf '%s\n' "${flags[@]}" | sed -n '/^--total-timesteps$/{n;p;}' | tail -n 1)
    for env in "${run_envs[@]}"; do
        for seed in "${seeds[@]}"; do
            run_dirs+=("$runs_dir/${env//\//-}__${run_name}__$seed") run_scripts+=("$run_script")
            own=(--env-id "$env" --seed "$seed" --exp-name "$run_name" "${flags[@]}")
            run_texts+=("$(quote "$(basename "$run_script")" "${own[@]}")")
            run_steps+=("${steps:-$(default_of total_timesteps)}")
        done
    done
done
twice=$(printf '%s\n' "${run_dirs[@]}" | sort | uniq -d | head -n 1)
[[ -z $twice ]] || fail "two runs would be $twice; a setting or a seed is given twice"

# The last step in a run's CSV file, 0 before there is one.
last_step() { (tail -n 1 "$1" 2> /dev/null || true) | awk -F , 'END { print $1 + 0 }'; }

is_finished() { # by this launcher's word, or by the last evaluation where the launcher was killed
    local dir=${run_dirs[$1]}
    [[ -f $dir/finished ]] && return
    ((run_steps[$1] > 0 && $(last_step "$dir/evaluations.csv") >= run_steps[$1])) &&
        [[ $dir/checkpoint.pt -nt $dir/evaluations.csv ]] # the last thing that a run writes
}

todo=() done_before=0
for i in "${!run_dirs[@]}"; do
    [[ -n $only && $i != "$only" ]] && continue
    dir=${run_dirs[$i]}
    # A script writes args.json when it has taken its flags: without it nothing was begun.
    if [[ -f $dir/args.json && -f $dir/command && $(< "$dir/command") != "${run_texts[$i]}" ]]; then
        echo "run.sh: $dir was begun with: $(< "$dir/command")" >&2
        fail "that is not the command given now; take another --name or --runs-dir"
    fi
    if is_finished "$i"; then
        done_before=$((done_before + 1))
        [[ -n $only ]] || echo "finished before: $dir"
    else
        todo+=("$i")
    fi
done
[[ -z $shortest_first ]] ||
    todo=($(for i in "${todo[@]}"; do echo "${run_steps[$i]} $i"; done | sort -n | cut -d ' ' -f 2))

build_job() { # the command that starts or resumes run i, into the array `job`
    local i=$1 dir=${run_dirs[$1]} own
    if [[ $backend == ray ]]; then # the job is this launcher again, with one run of the grid
        # Ray gives a job that it stops 3 seconds to save, if it is not told otherwise.
        job=(ray job submit --submission-id "$(ray_id "$i")" --entrypoint-num-cpus 1
            --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}' --
            env -C "$PWD" "PYTHON=$python" RAY_STOPS_RUNS=1 bash "$root/benchmark/run.sh"
            --only "$i" "${arguments[@]}")
        return
    fi
    eval "own=(${run_texts[$i]})" # it is quoted
    if [[ -f $dir/checkpoint.pt ]]; then own+=(--resume "$dir"); else own+=(--run-dir "$dir"); fi
    job=("$python" "${run_scripts[$i]}" "${own[@]:1}")
}

ray_id() { echo "$(basename "${run_dirs[$1]}")-$$"; }

if [[ $backend == slurm ]]; then
    # Every task of the array is this launcher again, with one run of the grid.
    array=$(IFS=, && echo "${todo[*]}")
    submit=(sbatch --array="$array%$workers" --job-name="${name:-$(basename "$runs_dir")}"
        --chdir="$PWD" --output="$runs_dir/slurm-%A_%a.log" --export="ALL,PYTHON=$python"
        "$root/benchmark/slurm.sh" "$root" "${arguments[@]}")
    ((${#todo[@]})) || { echo "all $done_before runs are finished" && exit; }
    printf '%q ' "${submit[@]}" && echo
    for i in "${todo[@]}"; do echo "  task $i: ${run_dirs[$i]}"; done
    [[ -z $dry_run ]] || exit 0
    mkdir -p "$runs_dir"
    "${submit[@]}"
    echo "submitted ${#todo[@]} runs; later, the same command submits those that are not finished"
    exit
fi

if [[ -n $dry_run ]]; then
    for i in "${todo[@]}"; do build_job "$i" && printf '%q ' "${job[@]}" && echo; done
    exit
fi

pids=() running=() failed=() finished=$done_before stopping=''
started=$(date +%s) reported=$(date +%s)

begin() {
    local dir=${run_dirs[$1]}
    mkdir -p "$dir"
    build_job "$1"
    if [[ $backend == ray ]]; then
        "${job[@]}" >> "$dir/ray.log" 2>&1 &
    else
        printf %s "${run_texts[$1]}" > "$dir/command"
        OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "${job[@]}" >> "$dir/log.txt" 2>&1 &
    fi
    pids+=("$!") running+=("$1")
}

reap() { # collect the runs that have ended
    local k code dir
    for k in "${!pids[@]}"; do
        kill -0 "${pids[$k]}" 2> /dev/null && continue
        code=0 && wait "${pids[$k]}" || code=$?
        dir=${run_dirs[${running[$k]}]}
        if ((code == 0)) && [[ $backend == local ]]; then touch "$dir/finished"; fi
        if [[ -f $dir/finished ]]; then # ray gives 0 for a stopped job too; its launcher writes this
            finished=$((finished + 1))
        elif [[ -z $stopping ]]; then
            failed+=("${running[$k]}")
            echo "failed with exit code $code: $dir"
        fi
        unset "pids[$k]" "running[$k]"
    done
}

stop() {
    stopping=$1
    echo "run.sh: the runs save and stop; again to end them at once" >&2
    for k in "${!pids[@]}"; do
        if [[ $backend == ray ]]; then
            ray job stop --no-wait "$(ray_id "${running[$k]}")" > /dev/null 2>&1 || true
        elif [[ -z $RAY_STOPS_RUNS ]]; then # ray tells the run itself; twice would be "at once"
            kill -TERM "${pids[$k]}" 2> /dev/null || true
        fi
    done
}

report() { # how far the runs are; the first call sets what has been done before
    local now i elapsed steps=0 total=0 left=''
    for i in "${todo[@]}"; do
        total=$((total + run_steps[i]))
        now=$(last_step "${run_dirs[$i]}/episodes.csv")
        [[ ! -f ${run_dirs[$i]}/finished ]] || now=${run_steps[$i]} # the last episode may not end
        steps=$((steps + now))
    done
    [[ -n $first_steps ]] || { first_steps=$steps && return; }
    elapsed=$(($(date +%s) - started)) reported=$(date +%s)
    now="$finished of $((${#todo[@]} + done_before)) finished, ${#pids[@]} running"
    if ((steps > first_steps && ${#pids[@]})); then
        left="; $((100 * steps / total))% of the steps, about "
        left+="$(((total - steps) * elapsed / (steps - first_steps) / 60 + 1)) min left"
    fi
    echo "[$((elapsed / 60)) min] $now, ${#failed[@]} failed$left"
}

trap 'stop 130' INT
trap 'stop 143' TERM
report
for i in "${todo[@]}" end; do
    # Wait for a free worker; at the end, for all.
    while reap; limit=$workers
        [[ $i != end && -z $stopping ]] || limit=1
        ((${#pids[@]} >= limit)); do
        sleep 0.5 & # in the background, because a signal ends the wait at once, but not a sleep
        wait $! || true
        (($(date +%s) - reported < ${REPORT_SECONDS:-30})) || report
    done
    [[ $i == end || -n $stopping ]] && break
    begin "$i"
done
[[ -n $only ]] || report

for i in "${failed[@]}"; do
    log=${run_dirs[$i]}/log.txt
    [[ -f $log ]] || log=${run_dirs[$i]}/ray.log
    # The last line; of a message in a frame, as for a flag that there is not, the first within.
    why=$(awk '/^╭/ { getline; last = $0; next } !/^(│|╰)/ { last = $0 } END { print last }' "$log")
    echo "failed: ${run_dirs[$i]}: $why (log: $log)" >&2
done
[[ -z $stopping ]] || { echo "stopped; go on with the same command" >&2 && exit "$stopping"; }
((${#failed[@]} == 0))
