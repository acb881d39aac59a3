"""`gearmesh apps`: applications listed, made, changed and deleted."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.table import Table

from frontend.client.client import Client
from gearmesh.cli.completing import app_names, model_names
from gearmesh.cli.terminal.calls import asking
from gearmesh.cli.terminal.consoles import text_of
from gearmesh.cli.terminal.telling import AsJson, refuse, tell, usage
from mesh.codes import ErrorCode
from mesh.names import listed as names_listed

applications = typer.Typer(
    add_completion=False, help="Applications: several models behind one name, learning from feedback."
)

Name = Annotated[str, typer.Argument(help="Of the application.", autocompletion=app_names)]
NewName = Annotated[str, typer.Argument(help="Of the application.")]
Models = Annotated[
    list[str], typer.Argument(help="The models, first the one that `single` asks.", autocompletion=model_names)
]
Policy = Annotated[str, typer.Option(help="single, exp3, exp4, linear, majority, epsilon_greedy, ucb1, ...")]
Args = Annotated[str, typer.Option(help='Its parameters, as JSON: {"eta": 0.1}.')]
SloMs = Annotated[float | None, typer.Option(help="Budget of a request that names none.")]
Default = Annotated[
    str | None, typer.Option(help='One row to answer when there is no answer to trust, as JSON: {"scores": [1, 0, 0]}.')
]
Least = Annotated[float, typer.Option(help="Confidence below which the default is answered.")]
KEPT = ("models", "policy", "policy_args", "slo_ms", "confidence_min", "default")  # kept by an update without it


def from_json(text: str | None) -> Any:
    """The value if the text is JSON, else the text itself."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


@applications.callback(invoke_without_command=True)
def listed(
    ctx: typer.Context,
    context: Annotated[str | None, typer.Option(help="Whose selection state.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the applications, and what they learned."""
    if ctx.invoked_subcommand is not None:
        return
    apps: list[dict[str, Any]] = _with(lambda session: session.apps(context))
    none = "there are no applications; gearmesh apps create NAME MODEL ... makes one"
    tell([_readable(app) for app in apps], *([none] if not apps else _shown(apps)))


def _readable(app: Mapping[str, Any]) -> dict[str, Any]:
    """The application with the bytes of its default answer as numbers."""
    default = [{**tensor, "data": list(tensor["data"])} for tensor in app["default"] or ()]
    return {**app, "default": default or None}


def _shown(apps: Iterable[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Yields each application, and a table of what it learned of its models."""
    for app in apps:
        counts = app["counts"]
        told = f"{counts['answered']} of {counts['asked']} answered by models, {counts['disagreed']} disagreed"
        yield f"{app['name']}: {app['policy']}, {told}, {_defaults(counts['defaults'])}"
        if app["learning"] != "on":
            yield text_of((app["learning"].replace("paused", "learning is paused"), "yellow"))
        table = Table("model", "weight", "feedback", "mean loss")
        for model in app["models"]:
            weight, learned = app["weights"].get(model), app["learned"].get(model, {})
            loss = learned.get("mean_loss")
            table.add_row(
                model,
                "" if weight is None else f"{weight:.1%}",
                str(learned.get("feedback", 0)),
                "" if loss is None else f"{loss:.3f}",
            )
        yield table


def _defaults(counts: Mapping[str, int]) -> str:
    """How often the default was answered, and why."""
    if not counts:
        return "no defaults"
    return f"defaults: {', '.join(f'{count} for {reason}' for reason, count in counts.items())}"


@applications.command()
def create(
    name: NewName, models: Models, policy: Policy = "single", args: Args = "{}", slo_ms: SloMs = None,
    default: Default = None, confidence_min: Least = 0.0, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Makes an application."""
    rest = {"policy_args": _parameters(args), "slo_ms": slo_ms, "confidence_min": confidence_min}
    row = _row_of(default, models[0])
    _done(name, _with(lambda session: session.create_app(name, models, policy, default=row(session), **rest)))


@applications.command()
def update(
    name: Name,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="The models; those it has if none is named.", autocompletion=model_names),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Another policy; its parameters then start from theirs.")] = None,
    args: Annotated[str | None, typer.Option(help="The policy's parameters, as JSON, replacing all of them.")] = None,
    slo_ms: SloMs = None, default: Default = None,
    confidence_min: Annotated[float | None, typer.Option(help="Below it the default is answered.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Changes what is given, and leaves the rest; models that stay keep what was learned of them."""
    given: dict[str, Any] = {"slo_ms": slo_ms, "confidence_min": confidence_min, "policy": policy}
    given["models"] = models or None
    if args is not None or policy is not None:
        given["policy_args"] = _parameters(args or "{}")
    changes = {key: value for key, value in given.items() if value is not None}

    def change(session: Client) -> Mapping[str, Any]:
        apps = session.apps()
        found = next((app for app in apps if app["name"] == name), None)
        if found is None:
            there = names_listed(app["name"] for app in apps)
            refuse(f"there is no application {name!r}; there are: {there}", code=ErrorCode.UNKNOWN_APP)
        definition = {key: found[key] for key in KEPT} | changes
        if default is not None:
            definition["default"] = _row_of(default, definition["models"][0])(session)
        return session.update_app(name, **definition)

    _done(name, _with(change))


@applications.command()
def delete(name: Name, as_json: AsJson = False) -> None:
    """Deletes an application, and what it learned."""
    _done(name, _with(lambda session: session.delete_app(name)))


def _done(name: str, answer: Mapping[str, Any]) -> None:
    tell({"app": name, "message": answer["message"]}, answer["message"])


def _parameters(args: str) -> dict[str, Any]:
    parameters = from_json(args)
    if not isinstance(parameters, dict):
        usage(f"--args takes a JSON object; got {args!r}")
    return parameters


def _row_of(text: str | None, model: str) -> Callable[[Client], dict[str, Any] | None]:
    """A function that makes {output: array of one row} of the text, once a client can tell the model's outputs."""
    value = from_json(text)

    def row(session: Client) -> dict[str, Any] | None:
        if text is None:
            return None
        outputs: list[dict[str, Any]] = next(
            (found["outputs"] for found in session.models() if found["name"] == model), []
        )
        given = value if isinstance(value, dict) else {output["name"]: value for output in outputs[:1]}
        arrays = {}
        for output in outputs:
            try:
                array = np.asarray(given.get(output["name"]), dtype=output["dtype"])
                arrays[output["name"]] = array.reshape(1, *output["shape"][1:])
            except (TypeError, ValueError):
                usage(f"--default: {output['name']} takes {output['shape'][1:]} numbers; got {text!r}")
        if given.keys() - arrays.keys():
            usage(f"--default: {model} gives {', '.join(arrays) or 'nothing that is known'}; got {text!r}")
        return arrays

    return row


def _with(action: Callable[[Client], Any]) -> Any:
    with asking() as session:
        return action(session)
