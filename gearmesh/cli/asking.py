"""`gearmesh infer` and `feedback`: one request, one truth."""

from typing import Annotated, Any, NoReturn

import typer

from gearmesh.cli.applications import from_json
from gearmesh.cli.completing import asked_names
from gearmesh.cli.terminal.answers import answer_shown, in_json
from gearmesh.cli.terminal.calls import asking
from gearmesh.cli.terminal.telling import AsJson, refuse, tell, usage
from mesh.codes import ErrorCode
from mesh.names import listed

app = typer.Typer(add_completion=False)


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="A model, or with --app an application.", autocompletion=asked_names)],
    source: Annotated[
        str,
        typer.Argument(
            help="A .npy file; JSON, or a file of it: an array, or an object of arrays by the inputs' names; "
            "an image file; -: JSON from standard input."
        ),
    ],
    slo_ms: Annotated[float | None, typer.Option(help="Budget; the model's own if not given.")] = None,
    as_json: AsJson = False,
    as_app: Annotated[bool, typer.Option("--app", help="Ask an application.")] = False,
    context: Annotated[str | None, typer.Option(help="Whose selection state; with --app.")] = None,
) -> None:
    """Asks a model or an application once, and prints the answer."""
    from gearmesh.cli.terminal.inputs import InputError, read_input

    if context is not None and not as_app:
        usage("--context goes with --app: a model has no state to select")
    with asking() as session:
        known = session.apps() if as_app else session.models()
        spec = next((entry for entry in known if entry["name"] == model), None)
        if spec is None:
            kind = "application" if as_app else "model"
            hint = "; --app asks an application" if not as_app else ""
            usage(f"there is no {kind} {model!r}; there are: {listed(e['name'] for e in known)}{hint}")
        if not as_app and not spec["inputs"]:  # it was never ready
            _not_ready(spec)
        try:
            x = read_input(source, spec)
        except InputError as error:
            usage(str(error))
        if as_app:
            prediction = session.infer(app=model, x=x, slo_ms=slo_ms, context=context)
        else:
            prediction = session.infer(model, x, slo_ms=slo_ms)
    outputs = {name: in_json(array.tolist()) for name, array in prediction.outputs.items()}
    tell({**prediction.answer, "outputs": outputs}, *answer_shown(prediction, spec.get("labels") or []))


def _not_ready(model: dict[str, Any]) -> NoReturn:
    """Says why the model takes no requests yet, and exits 1."""
    why = model["fault"] or (f"version {model['preparing']} is being prepared" if model["preparing"] else "")
    why = why or model.get("unserved") or "no version of it is current"
    refuse(f"{model['name']} is not ready: {why}", code=ErrorCode.NOT_READY)


@app.command()
def feedback(
    decision: Annotated[str, typer.Argument(help="decision_id of an application's answer.")],
    label: Annotated[str | None, typer.Option(help="The truth, as JSON: 7, a name, or a list by row.")] = None,
    loss: Annotated[float | None, typer.Option(help="Or how bad the answer was.")] = None,
    context: Annotated[str | None, typer.Option(help="The context it was asked in; checked.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tells an application how good its answer was."""
    if (label is None) == (loss is None):
        usage("give either --label or --loss")
    with asking() as session:
        told = session.feedback(decision, label=from_json(label), loss=loss, context=context)
    if not told["applied"]:
        refuse(f"not applied ({told['reason']}): {told['message']}", code=told["reason"])
    tell({"decision_id": decision, "applied": True}, "applied")
