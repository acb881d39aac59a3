"""`gearmesh infer` and `feedback`: one request, one truth."""

import json
from typing import Annotated, Any, NoReturn

import typer

from frontend.client.client import RequestError
from gearmesh.cli.applications import from_json
from gearmesh.cli.terminal.answers import show
from gearmesh.cli.terminal.session import client, err, out, settings, usage

app = typer.Typer(add_completion=False)


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="A model, or with --app an application.")],
    source: Annotated[str, typer.Argument(help="A .npy file, a JSON array (or a file of one), an image file, or - .")],
    slo_ms: Annotated[float | None, typer.Option(help="Budget; the model's own if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer.")] = False,
    as_app: Annotated[bool, typer.Option("--app", help="Ask an application.")] = False,
    context: Annotated[str | None, typer.Option(help="Whose selection state; with --app.")] = None,
) -> None:
    """Asks a model or an application once, and prints the answer."""
    from gearmesh.cli.terminal.inputs import InputError, read_input

    if context is not None and not as_app:
        usage("--context goes with --app: a model has no state to select")
    config = settings()
    with client(config) as session:
        try:
            known = session.apps() if as_app else session.models()
            spec = next((entry for entry in known if entry["name"] == model), None)
            if spec is None:
                kind = "application" if as_app else "model"
                hint = "; --app asks an application" if not as_app else ""
                usage(f"there is no {kind} {model!r}; there are: {', '.join(e['name'] for e in known) or 'none'}{hint}")
            if not as_app and not spec["inputs"]:  # it was never ready
                _not_ready(spec)
            x = read_input(source, spec)
            if as_app:
                prediction = session.infer(app=model, x=x, slo_ms=slo_ms, context=context)
            else:
                prediction = session.infer(model, x, slo_ms=slo_ms)
        except InputError as error:
            usage(str(error))
        except RequestError as error:
            err.print(str(error), style="red", highlight=False, markup=False)
            raise typer.Exit(1) from error
    if as_json:
        outputs = {name: array.tolist() for name, array in prediction.outputs.items()}
        print(json.dumps({**prediction.answer, "outputs": outputs}))
        return
    show(prediction, spec.get("labels") or [], out)


def _not_ready(model: dict[str, Any]) -> NoReturn:
    """Says why the model takes no requests yet, and exits 1."""
    why = model["fault"] or (f"version {model['preparing']} is being prepared" if model["preparing"] else "")
    text = f"{model['name']} is not ready: {why or 'no version of it is current'}"
    err.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)


@app.command()
def feedback(
    decision: Annotated[str, typer.Argument(help="decision_id of an application's answer.")],
    label: Annotated[str | None, typer.Option(help="The truth, as JSON: 7, a name, or a list by row.")] = None,
    loss: Annotated[float | None, typer.Option(help="Or how bad the answer was.")] = None,
    context: Annotated[str | None, typer.Option(help="The context it was asked in; checked.")] = None,
) -> None:
    """Tells an application how good its answer was."""
    if (label is None) == (loss is None):
        usage("give either --label or --loss")
    with client(settings()) as session:
        try:
            told = session.feedback(decision, label=from_json(label), loss=loss, context=context)
        except RequestError as error:
            err.print(str(error), style="red", highlight=False, markup=False)
            raise typer.Exit(1) from error
    if told["applied"]:
        out.print("applied")
        return
    err.print(f"not applied ({told['reason']}): {told['message']}", highlight=False, markup=False)
    raise typer.Exit(1)
