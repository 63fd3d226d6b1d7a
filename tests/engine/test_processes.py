"""How processes find one another, what they agree on, and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from two_processes import ONE_THREAD, pair_of, start_two

from a2mim.checkpoints import list_checkpoints
from a2mim.cli import main
from a2mim.commands.training import join_resume
from a2mim.engine import report
from a2mim.engine.assembly import choose_amp
from a2mim.engine.config import load_config
from a2mim.engine.failures import explained
from a2mim.engine.hooks import SignalHook
from a2mim.engine.memory import OutOfMemory, is_out_of_memory
from a2mim.engine.records import StepContext
from a2mim.engine.runner import TrainRunner
from a2mim.processes import group as processes

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "3,1",
}


def test_a_slurm_step_of_several_tasks_fills_in_torchrun_s_variables():
    environ = dict(STEP)
    processes.fill_from_slurm(environ)
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [environ[name] for name in names] == ["4", "3", "0", "1", "gpu07"]
    other = STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    processes.fill_from_slurm(other)
    assert other["MASTER_PORT"] == environ["MASTER_PORT"] and other["LOCAL_WORLD_SIZE"] == "3"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NODELIST": "n1"},  # a batch script, outside a step
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"WORLD_SIZE": "2", "RANK": "0"},  # torchrun inside a step
    ],
)
def test_other_environments_stay_as_they_are(environ):
    before = dict(environ)
    processes.fill_from_slurm(environ)
    assert environ == before


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"])
def test_a_step_that_does_not_say_which_task_this_is_is_refused_in_a_sentence(missing):
    environ = {key: value for key, value in STEP.items() if key != missing}
    with pytest.raises(ValueError, match=r"SLURM has started 4 tasks, .* start the run with srun torchrun"):
        processes.fill_from_slurm(environ)


@pytest.mark.parametrize(
    ("nodes", "first", "others"),
    [("n1", "n1", False), ("n[07-09,12],m3", "n07", True), ("a-[1,3]-x", "a-1-x", True), ("n1,n2", "n1", True)],
)
def test_the_first_host_of_a_node_list(nodes, first, others):
    assert processes.first_host(nodes) == (first, others)


def test_one_gpu_a_task_is_number_0_and_too_few_are_a_sentence():
    assert processes.own_gpu(3, 1) == 0 and processes.own_gpu(3, 8) == 3
    with pytest.raises(ValueError, match="process 4 of this node has no GPU: torch finds 2"):
        processes.own_gpu(4, 2)


def test_emulated_bf16_is_not_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_amp("auto", torch.device("cuda")) is None


def test_a_preemption_may_count_double_but_a_second_ctrl_c_ends_the_run(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        hook = SignalHook()
        hook.note(number, None)
        hook.note(number, None)
        hook.note(signal.SIGTERM, None)
        assert hook.received == number
    hook = SignalHook()
    hook.note(signal.SIGINT, None)
    with pytest.raises(SystemExit):
        hook.note(signal.SIGINT, None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun passes Ctrl-C on to processes that have had it
    hook = SignalHook()
    hook.note(signal.SIGINT, None)
    hook.note(signal.SIGINT, None)
    assert hook.received == signal.SIGINT


@pytest.mark.parametrize(
    ("typed", "joined"),
    [
        ("--resume", "--resume"),
        ("--resume auto", "--resume=auto"),
        ("--resume r.py", "--resume=newest r.py"),
        ("r.py --resume --laptop", "r.py --resume=newest --laptop"),
        ("r.py --resume auto s", "r.py --resume=auto s"),
    ],
)
def test_a_recipe_behind_resume_is_no_value_of_it(typed, joined):
    assert join_resume(typed.split()) == joined.split()


def test_the_line_to_go_on_with_names_torchrun_where_that_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/a2mim"])
    assert report.again("pretrain", "r.py", tmp_path) == f"a2mim pretrain r.py --work-dir {tmp_path} --resume"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    words = report.again("pretrain", "r.py", tmp_path).split()
    assert words[:6] == ["torchrun", "--nproc-per-node", "2", "--no-python", "a2mim", "pretrain"]
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    assert "the torchrun of this run on every node" in report.again("pretrain", "r.py", tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried 9 GB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    ],
)
def test_no_memory_is_recognised(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_step_without_memory_ends_with_a_sentence_that_says_accumulate(run, monkeypatch):
    def no_memory(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("a2mim.mim.MIM.compare", no_memory)
    monkeypatch.setattr("a2mim.mim.model.check_parts", lambda model: None)
    with pytest.raises(OutOfMemory, match=r"too little memory for 8 images at a time: raise accumulate \(now 1\)"):
        run("full", **{"log.pictures": 2})


def test_a_lost_process_is_a_sentence_with_the_command_to_go_on_with():
    class Here:
        task = type("task", (), {"command": "pretrain"})
        request = type("request", (), {"config": "r.py"})
        claimed = "runs/r"
        last_good = staticmethod(lambda: "the last good checkpoint is 3")

    told = explained(torch.distributed.DistNetworkError("Connection closed by peer [::1]:4"), Here, 7)
    assert isinstance(told, ConnectionError)
    assert "step 7: another process of this run is gone" in str(told) and "--work-dir runs/r --resume" in str(told)


def test_resume_auto_starts_goes_on_and_refuses_another_run(run, recipe, tmp_path):
    folder, _ = run("auto", resume="auto", **{"schedule.epochs": 2})
    first = json.loads((folder / "summary.json").read_text())
    assert first["status"] == "finished" and first["steps"] == 6
    for path in sorted((folder / "checkpoints").iterdir())[4:]:
        path.unlink()
    _, again = run("auto", resume="auto", **{"schedule.epochs": 2})
    assert again["steps"] == 6 and again["loss"]["first"] == first["loss"]["first"]
    with pytest.raises(ValueError, match=r"holds another run .*\(seed: 0 -> 1\); choose another --work-dir"):
        run("auto", resume="auto", seed=1, **{"schedule.epochs": 2})
    with pytest.raises(ValueError, match=r"holds another run .*data: "):
        run("auto", resume="auto", data=tmp_path, **{"schedule.epochs": 2})


def test_resume_auto_needs_a_folder(recipe, capsys):
    assert main(["pretrain", str(recipe), "--resume", "auto"]) == 1
    assert "--resume auto needs --work-dir" in capsys.readouterr().err


PAIR = """
import os, sys, time
from datetime import timedelta
from a2mim.processes import group as processes

processes.POLL, rank = timedelta(seconds=1), int(os.environ["RANK"])
processes.start_processes("cpu")
assert processes.agree(lambda: os.environ["RANK"]) == "0"
try:
    processes.agree(lambda: int("x"))
except ValueError as error:
    assert "invalid literal" in str(error)
exchange = processes.Exchange()
assert [exchange.largest(number) for number in (5 * rank, 0, 0)] == [0, 5, 0]
exchange.collect()
with processes.first_alone() as first:
    if first:
        time.sleep(3)  # longer than a look at the store
started = time.time()
processes.leave_together()
assert time.time() - started < 2
processes.stop_processes()
print("left", flush=True)
"""


def test_each_life_of_the_processes_has_a_name_of_its_own_in_the_store():
    names = [processes.life({"TORCHELASTIC_RESTART_COUNT": count, "GROUP_WORLD_SIZE": "1"}) for count in "012"]
    assert len(set(names)) == 3
    # each node counts for itself, and c10d makes a new store each time
    nodes = [processes.life({"TORCHELASTIC_RESTART_COUNT": count, "GROUP_WORLD_SIZE": "2"}) for count in "01"]
    assert len(set(nodes)) == 1


REJOIN = """
import os, time
from a2mim.processes import group as processes

processes.start_processes("cpu")
processes.set_timeout(7.5)
store, count = processes._joined[0].store, os.environ["TORCHELASTIC_RESTART_COUNT"]
with processes.first_alone() as first:
    if first:
        time.sleep(1)
        store.set("made by", count)
assert store.get("made by").decode() == count
processes.leave_together()
processes.stop_processes()
print("left", flush=True)
"""


@pytest.mark.slow
def test_restarted_processes_do_not_read_what_dead_ones_left_in_torchrun_s_store(tmp_path):
    """torchrun's static rendezvous keeps one store over all restarts."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    variables |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    for count in "01":
        more = variables | {"TORCHELASTIC_RESTART_COUNT": count}
        for printed in start_two(tmp_path, REJOIN, **more):
            assert printed.endswith("left\n"), printed


def test_the_recipe_s_time_limit_holds_for_gradients_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_set_pg_timeout", lambda *args: asked.append(args))
    processes.set_timeout(1)  # without other processes there is nothing to set
    monkeypatch.setattr(processes, "_joined", [processes.Group(None, "control")])
    processes.set_timeout(7.5)
    assert [(limit.total_seconds(), group) for limit, group in asked] == [(450.0, torch.distributed.group.WORLD)]


@pytest.mark.slow
def test_two_processes_of_a_slurm_step_agree_wait_and_leave(tmp_path):
    program = PAIR.replace('int(os.environ["RANK"])', 'int(os.environ["RANK_HERE"])')
    for printed in start_two(tmp_path, program):
        assert printed.endswith("left\n"), printed


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_torchrun_s_restart_ends_with_the_same_weights(recipe, images, tmp_path):
    """The command line says nothing of resuming: the restarted processes find the folder of their own run."""

    def start(name):
        command = pair_of(
            *("-m", "a2mim.cli", "pretrain", recipe, "--data", images, "--device", "cpu"),
            *("--num-workers", "0", "--cfg-options", "schedule.epochs=8"),
            options=("--max-restarts", "2"),
        )
        here = tmp_path / name
        here.mkdir()
        return here / "runs" / "tiny", subprocess.Popen(
            command, cwd=here, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    whole, process = start("whole")
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    killed, process = start("killed")
    deadline = time.monotonic() + 200
    while not (killed / "checkpoints" / "step_00000005.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert [path.name for path in (tmp_path / "killed" / "runs").iterdir()] == ["tiny"]
    both = [torch.load(list_checkpoints(each / "checkpoints")[-1], weights_only=True) for each in (whole, killed)]
    assert both[0]["meta"]["step"] == both[1]["meta"]["step"] == 24
    for key, value in both[0]["state_dict"].items():
        assert torch.equal(value, both[1]["state_dict"][key]), key


def test_each_process_has_a_log_folder_of_its_own(recipe, tmp_path, monkeypatch):
    """mmengine makes it on every process, and each removes its own: one process's would go while another makes it."""
    given = []

    class Stop(Exception):
        pass

    def stop(self, **arguments):
        given.append(arguments["work_dir"])
        raise Stop

    monkeypatch.setattr("mmengine.runner.Runner.__init__", stop)
    task = SimpleNamespace(model=None)
    run = SimpleNamespace(settings=load_config(recipe), claimed=tmp_path, folder=tmp_path, task=task, loader=None)
    for rank in range(2):
        with pytest.raises(Stop):
            TrainRunner(run, StepContext(torch.device("cpu"), 0, rank, 2), None, {})
    assert len(set(given)) == 2
