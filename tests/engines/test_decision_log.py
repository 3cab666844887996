"""`nextrl_decisions.jsonl`: one whole line for each decision, whatever a killed process left of the last one."""

import json
import resource

import pytest

from nextrl.engines import decision_log
from nextrl.errors import InputError
from nextrl.judge import decision_file
from nextrl.judge.decision import DecisionRecord


def decision(step: int) -> DecisionRecord:
    return DecisionRecord(step=step, alpha=0.0, reason="nothing to do")


def test_what_was_appended_is_read(tmp_path):
    assert decision_file.read(tmp_path) == []
    decision_log.begin(tmp_path, [decision(1)])
    decision_log.append(tmp_path, decision(2))
    assert decision_file.read(tmp_path) == [decision(1), decision(2)]
    decision_log.begin(tmp_path, [])
    assert decision_file.read(tmp_path) == []


def test_an_earlier_run_s_decisions_are_kept_beside_and_a_resumed_one_s_go_on(tmp_path):
    decision_log.begin(tmp_path, [], anew=True)
    for step in (1, 2, 3):
        decision_log.append(tmp_path, decision(step))
        decision_log.begin(tmp_path, [], anew=True)
    decision_log.append(tmp_path, decision(4))
    decision_log.begin(tmp_path, [decision(4)])  # a resumed run's
    assert decision_file.read(tmp_path) == [decision(4)]
    decision_log.begin(tmp_path, [])  # one that goes on from before its first decision
    assert decision_file.read(tmp_path) == []
    kept = {
        path.name: path.read_text() for path in tmp_path.iterdir() if path.name != decision_file.DECISIONS
    }
    assert kept == {f"nextrl_decisions.{n}.jsonl": decision(n).model_dump_json() + "\n" for n in (1, 2, 3)}


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_half_a_last_line_is_left_out(tmp_path, kept, caplog):
    decision_log.begin(tmp_path, [decision(1), decision(2)])
    path = tmp_path / decision_file.DECISIONS
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + second[:kept])
    assert decision_file.read(tmp_path) == [decision(1)]
    assert "the last line is cut off" in caplog.text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2: not readable as JSON"),
        ("[]", r"line 2: no decision \(Input should be a valid dictionary"),
        ('{"step": 1}', r"line 2: no decision \(alpha: Field required\)"),
        (
            '{"step": 2, "alpha": 0, "reason": "r", "scores": {"1": "x"}}',
            r"decision \(scores\.1: Input should be",
        ),
        ("", "line 2: not readable as JSON"),
        ("\ufffd", "line 2: not readable as JSON"),
    ],
)
def test_another_line_that_is_none_is_refused(tmp_path, line, why):
    decision_log.begin(tmp_path, [decision(1)])
    with (tmp_path / decision_file.DECISIONS).open("a") as file:
        file.write(f"{line}\n")
    decision_log.append(tmp_path, decision(3))
    with pytest.raises(InputError, match=why + r".*; correct or remove that line$"):
        decision_file.read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("learning_rate", 1e300),
        ("learning_rate", "2e-4"),
        ("lr_factor", -2.0),
        ("lr_factor", float("inf")),
        ("rate_factor", float("nan")),
        ("alpha", float("nan")),
        ("step", -5),
        ("step", 10**12),
        ("step", 2.0),
        ("cost_completions", -1),
    ],
)
def test_a_number_that_no_run_has_is_refused(tmp_path, field, value):
    written = json.loads(decision(2).model_dump_json()) | {field: value}
    lines = [decision(1).model_dump_json(), json.dumps(written), ""]
    (tmp_path / decision_file.DECISIONS).write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"line 2: no decision \({field}: .*; correct or remove that line"):
        decision_file.read(tmp_path)


def test_what_could_not_be_measured_and_a_rate_of_zero_are_read(tmp_path):
    made = DecisionRecord(
        step=0, alpha=-1.0, reason="r", learning_rate=0.0, divergence=float("nan"), rolled_back=0
    )
    decision_log.begin(tmp_path, [made])
    assert decision_file.read(tmp_path) == [made]


def test_lines_out_of_the_order_of_their_steps_are_refused(tmp_path):
    decision_log.begin(tmp_path, [decision(1), decision(2), decision(2)])
    assert len(decision_file.read(tmp_path)) == 3
    decision_log.append(tmp_path, decision(1))
    with pytest.raises(InputError, match=r"line 4: is of step 1, and the line before it of step 2; .*remove"):
        decision_file.read(tmp_path)


def test_a_whole_last_line_without_its_end_counts(tmp_path, caplog):
    decision_log.begin(tmp_path, [decision(1), decision(2)])
    path = tmp_path / decision_file.DECISIONS
    path.write_bytes(path.read_bytes()[:-1])
    assert decision_file.read(tmp_path) == [decision(1), decision(2)]
    path.write_bytes(path.read_bytes() + b"\n  ")
    assert decision_file.read(tmp_path) == [decision(1), decision(2)]
    assert not caplog.text


def test_a_last_line_that_is_cut_off_inside_a_letter_is_left_out(tmp_path, caplog):
    decision_log.begin(tmp_path, [decision(1)])
    with (tmp_path / decision_file.DECISIONS).open("ab") as file:
        file.write('{"step": 2, "reason": "ä'.encode()[:-1])
    assert decision_file.read(tmp_path) == [decision(1)]
    assert "the last line is cut off" in caplog.text


def test_a_folder_of_that_name_is_no_log(tmp_path):
    (tmp_path / decision_file.DECISIONS).mkdir()
    with pytest.raises(InputError, match="is a folder, not a file"):
        decision_file.read(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        decision_log.append(tmp_path, decision(1))


def test_files_of_earlier_versions_are_read(tmp_path):
    old = {**json.loads(decision(1).model_dump_json()), "leg": 3, "saved_steps_estimate": 2.0}
    del old["claimed_steps"]
    (tmp_path / decision_file.DECISIONS).write_text(json.dumps(old) + "\n")
    [found] = decision_file.read(tmp_path)
    assert found == decision(1).model_copy(update={"claimed_steps": 2.0})


def test_a_disk_that_fills_up_in_the_middle_of_a_line_leaves_the_lines_before(tmp_path):
    decision_log.begin(tmp_path, [decision(1)])
    before = (tmp_path / decision_file.DECISIONS).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) * 3 // 2, hard))
    try:
        with pytest.raises(InputError, match="the lines before are unchanged"):
            decision_log.append(tmp_path, decision(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / decision_file.DECISIONS).read_bytes() == before
    decision_log.append(tmp_path, decision(3))
    assert [d.step for d in decision_file.read(tmp_path)] == [1, 3]
