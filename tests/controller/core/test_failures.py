"""controller/core/failures.py: the sets say the same as the codes themselves, as far as codes say it."""

from controller.core.failures import INFER_FINAL, INFER_NOT_THERE, LOAD_FINAL, LOADED, MENDED_BY_PEOPLE
from mesh.codes import ActionCode


def test_an_infer_fails_for_good_where_the_same_asked_again_would_end_no_better() -> None:
    hopeless = {code for code in ActionCode if not code.retry}
    assert hopeless - {ActionCode.OK, ActionCode.CONTENT_CHANGED} == INFER_FINAL  # no INFER reads files


def test_a_load_that_would_fail_again_is_told_from_one_that_may_not() -> None:
    assert not any(code.retry for code in LOAD_FINAL)
    assert set() == LOADED & (LOAD_FINAL | INFER_FINAL)


def test_what_is_not_there_is_planned_elsewhere() -> None:
    assert all(code.retry for code in INFER_NOT_THERE)


def test_people_mend_only_what_asking_again_does_not() -> None:
    assert MENDED_BY_PEOPLE <= INFER_FINAL


def test_a_code_from_the_wire_is_found_as_its_string() -> None:
    assert all(str(code.value) in INFER_FINAL for code in INFER_FINAL)
    assert "a code that only a newer worker knows" not in INFER_FINAL
