#!/usr/bin/env bash
# Launch a grid of seeded runs: every environment with every seed.
#
#   benchmark/run.sh --script ddpg_continuous.py --env-ids HopperBulletEnv-v0 AntBulletEnv-v0 \
#       --seeds 1 2 3 --workers 2 -- --gamma 0.98
#
#   --script FILE      the script to run
#   --env-ids ID ...   environments
#   --seeds N ...      seeds (default: 1 2 3)
#   --workers N        runs at the same time, on a cluster too (default: 1)
#   --backend NAME     local: processes here, with one thread each (OMP_NUM_THREADS changes that)
#                      slurm: one array of jobs; benchmark/slurm.sh holds its #SBATCH lines
#                      ray: jobs on the cluster that RAY_ADDRESS names, by `ray job submit`
#   --runs-dir DIR     where the runs go (default: runs); the machines of a cluster must share it
#   --name NAME        what the runs are called (default: the script's name)
#   --track            log to Weights & Biases
#   --dry-run          print what would be done
#   --smoke            everything at a thousandth of the length, in DIR/smoke: does it all run?
#   -- FLAGS           all that follows goes to the script
#
# A run lives in DIR/{environment}__{name}__{seed}. Give the same command again after any
# interruption: finished runs are skipped, the ones cut off are resumed, failed ones tried again.
# Ctrl-C lets the runs save and stops them, a second one ends them at once. PYTHON names the
# interpreter. Exit code: 0 all finished, 1 some failed, 2 bad input, 130 or 143 stopped.
set -eo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
script='' envs=() seeds=() workers=1 backend=local runs_dir=runs name='' flags=()
dry_run='' smoke='' only=''
python=${PYTHON:-python}
if [[ -z $PYTHON && -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
arguments=("$@")

fail() {
    echo "run.sh: $1" >&2
    exit 2
}

while (($#)); do
    flag=$1 && shift
    case $flag in
        --script | --workers | --backend | --runs-dir | --name | --only)
            (($#)) || fail "$flag needs a value"
            variable=${flag#--}
            printf -v "${variable//-/_}" %s "$1"
            shift ;;
        --env-ids | --seeds)
            list=()
            while (($#)) && [[ $1 != --* ]]; do list+=("$1"); shift; done
            ((${#list[@]})) || fail "$flag needs at least one value"
            if [[ $flag == --seeds ]]; then seeds=("${list[@]}"); else envs=("${list[@]}"); fi ;;
        --track) flags+=(--track) ;;
        --dry-run) dry_run=1 ;;
        --smoke) smoke=1 ;;
        --) flags+=("$@") && break ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;;
        *) fail "$flag is no flag of run.sh; the script's own go behind -- (--help shows all)" ;;
    esac
done

((${#seeds[@]})) || seeds=(1 2 3)
((${#envs[@]})) || fail "--env-ids needs at least one environment, such as HopperBulletEnv-v0"
[[ -n $script ]] || fail "--script needs a script, such as ddpg_continuous.py"
[[ -f $script ]] || script=$root/$script
[[ -f $script ]] || fail "there is no script ${script#"$root"/}"
[[ $workers =~ ^[1-9][0-9]*$ ]] || fail "--workers is $workers, and must be a number from 1"
for seed in "${seeds[@]}"; do
    [[ $seed =~ ^[0-9]+$ ]] || fail "--seeds has $seed, and takes whole numbers from 0"
done
[[ -z $only ]] || backend=local # this is a job of slurm or ray, and does one run
case $backend in
    local) command -v "$python" > /dev/null || fail "there is no $python; set PYTHON" ;;
    slurm) [[ -n $dry_run ]] || command -v sbatch > /dev/null || fail "there is no sbatch here" ;;
    ray)
        [[ -n $dry_run ]] || command -v ray > /dev/null ||
            fail "there is no ray here; pip install 'ray[default]'" ;;
    *) fail "--backend is $backend, and must be local, slurm or ray" ;;
esac
[[ -z $(printf '%s\n' "${seeds[@]}" | sort | uniq -d) ]] || fail "--seeds has a number twice"
name=${name:-$(basename "$script" .py)}
if [[ -n $smoke ]]; then
    for length in total_timesteps learning_starts; do # where not given, the script's defaults
        default=$(sed -n "s/^    $length: int = \([0-9_]*\).*/\1/p" "$script")
        flag=--${length//_/-}
        [[ -z $default || " ${flags[*]}" == *" $flag"* ]] || flags+=("$flag" "${default//_/}")
    done
    for k in "${!flags[@]}"; do # the lengths among the script's flags
        case ${flags[k]} in
            --*-timesteps | --*-starts | --*-decay-steps | --*-decay-episodes) divisor=1000 ;;
            --*-interval) divisor=100 ;; # so that evaluations do not take all the time
            --*-timesteps=* | --*-starts=* | --*-interval=*)
                fail "--smoke takes ${flags[k]%%=*} and its number as two words" ;;
            *) continue ;;
        esac
        [[ ${flags[k + 1]} =~ ^[0-9]+$ ]] ||
            fail "${flags[k]} is ${flags[k + 1]}, and must be a whole number for --smoke"
        flags[k + 1]=$((flags[k + 1] > divisor ? flags[k + 1] / divisor : 1))
    done
    flags+=(--eval-episodes 1 --no-compile)
    runs_dir=$runs_dir/smoke
fi

# The grid: job i is run_dirs[i], of run_envs[i] with run_seeds[i].
run_dirs=() run_envs=() run_seeds=()
for env in "${envs[@]}"; do
    for seed in "${seeds[@]}"; do
        run_envs+=("$env") run_seeds+=("$seed")
        run_dirs+=("$runs_dir/${env//\//-}__${name}__$seed")
    done
done

# The flags that make the run what it is. Kept beside the run, so that a folder never mixes two.
flags_of() {
    own=(--env-id "${run_envs[$1]}" --seed "${run_seeds[$1]}" --exp-name "$name" "${flags[@]}")
}
text_of() { flags_of "$1" && printf '%q ' "$(basename "$script")" "${own[@]}"; }

# The last step in a run's CSV file, 0 before there is one.
last_step() {
    local step
    step=$(tail -n 1 "$1" 2> /dev/null | cut -d , -f 1)
    if [[ $step =~ ^[0-9]+$ ]]; then echo "$step"; else echo 0; fi
}

total_steps() { # the run's length, 0 before it has begun
    local total
    total=$(sed -n 's/^ *"total_timesteps": \([0-9]*\).*/\1/p' "$1/args.json" 2> /dev/null) || true
    echo "${total:-0}"
}

is_finished() { # by this launcher's word, or by the last evaluation where the launcher was killed
    local total
    [[ -f $1/finished ]] && return
    total=$(total_steps "$1")
    ((total > 0 && $(last_step "$1/evaluations.csv") >= total)) &&
        [[ $1/checkpoint.pt -nt $1/evaluations.csv ]] # the last thing that a run writes
}

todo=() done_before=0
for i in "${!run_dirs[@]}"; do
    [[ -n $only && $i != "$only" ]] && continue
    dir=${run_dirs[$i]}
    # A script writes args.json when it has taken its flags: without it nothing was begun.
    if [[ -f $dir/args.json && -f $dir/command && $(< "$dir/command") != "$(text_of "$i")" ]]; then
        echo "run.sh: $dir was begun with: $(< "$dir/command")" >&2
        fail "that is not the command given now; take another --name or --runs-dir"
    fi
    if is_finished "$dir"; then
        done_before=$((done_before + 1))
        [[ -n $only ]] || echo "finished before: $dir"
    else
        todo+=("$i")
    fi
done

# The command of job i, in the array `job`.
build_job() {
    local i=$1 dir=${run_dirs[$1]}
    if [[ $backend == ray ]]; then # the job is this launcher again, with one run of the grid
        # Ray gives a job that it stops 3 seconds to save, if it is not told otherwise.
        job=(ray job submit --submission-id "$(ray_id "$i")" --entrypoint-num-cpus 1
            --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}' --
            env -C "$PWD" "PYTHON=$python" RAY_STOPS_RUNS=1 bash "$root/benchmark/run.sh"
            --only "$i" "${arguments[@]}")
        return
    fi
    flags_of "$i"
    if [[ -f $dir/checkpoint.pt ]]; then own+=(--resume "$dir"); else own+=(--run-dir "$dir"); fi
    job=("$python" "$script" "${own[@]}")
}

ray_id() { echo "$(basename "${run_dirs[$1]}")-$$"; }

if [[ $backend == slurm ]]; then
    # Every task of the array is this launcher again, with one run of the grid.
    array=$(IFS=, && echo "${todo[*]}")
    submit=(sbatch --array="$array%$workers" --job-name="$name" --chdir="$PWD"
        --output="$runs_dir/slurm-%A_%a.log" --export="ALL,PYTHON=$python"
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
started=$(date +%s)

begin() {
    local i=$1 dir=${run_dirs[$1]}
    mkdir -p "$dir"
    build_job "$i"
    if [[ $backend == ray ]]; then
        "${job[@]}" >> "$dir/ray.log" 2>&1 &
    else
        # The lock lasts as long as the run: a second launcher must not write to the same folder.
        (
            if command -v flock > /dev/null; then
                flock -n 9 || { echo "run.sh: $dir is running already" && exit 1; }
            fi
            text_of "$i" > "$dir/command"
            export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
            exec "${job[@]}"
        ) >> "$dir/log.txt" 2>&1 9> "$dir/lock" &
    fi
    pids+=("$!") running+=("$i")
}

reap() { # collect the runs that have ended
    local k code i dir
    for k in "${!pids[@]}"; do
        kill -0 "${pids[$k]}" 2> /dev/null && continue
        code=0 && wait "${pids[$k]}" || code=$?
        i=${running[$k]} dir=${run_dirs[${running[$k]}]}
        unset "pids[$k]" "running[$k]"
        if ((code == 0)) && [[ $backend == local ]]; then touch "$dir/finished"; fi
        if [[ -f $dir/finished ]]; then # ray gives 0 for a stopped job too; its launcher writes this
            finished=$((finished + 1))
        elif [[ -z $stopping ]]; then
            failed+=("$i")
            echo "failed with exit code $code: $dir"
        fi
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

steps_done() { # of the runs to do, and of how many: two numbers
    local sum=0 total length=0 step dir i
    for i in "${todo[@]}"; do
        dir=${run_dirs[$i]}
        total=$(total_steps "$dir") step=$(last_step "$dir/episodes.csv")
        ((total == 0)) || length=$total
        [[ ! -f $dir/finished ]] || step=$total # its last episode may have no end
        sum=$((sum + step))
    done
    echo "$sum $((length * ${#todo[@]}))"
}

report() {
    local now sum total left='' elapsed
    read -r sum total <<< "$(steps_done)"
    elapsed=$(($(date +%s) - started))
    if ((total > 0 && sum > first_sum)); then
        left=", about $(((total - sum) * elapsed / (sum - first_sum) / 60 + 1)) min left"
        left="$((100 * sum / total))% of the steps$left"
    fi
    ((${#pids[@]})) || left=''
    now="$finished of $((${#todo[@]} + done_before)) finished, ${#pids[@]} running"
    echo "[$((elapsed / 60)) min] $now, ${#failed[@]} failed${left:+; $left}"
}

trap 'stop 130' INT
trap 'stop 143' TERM
read -r first_sum _ <<< "$(steps_done)"
reported=$started
for i in "${todo[@]}" end; do
    # Wait for a free worker; at the end, for all.
    while reap; limit=$workers
        [[ $i != end && -z $stopping ]] || limit=1
        ((${#pids[@]} >= limit)); do
        sleep 0.5 & # in the background, because a signal ends the wait at once, but not a sleep
        wait $! || true
        if (($(date +%s) - reported >= ${REPORT_SECONDS:-30})); then
            reported=$(date +%s)
            report
        fi
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
if [[ -n $stopping ]]; then
    echo "stopped; go on with the same command" >&2
    exit "$stopping"
fi
((${#failed[@]} == 0))
