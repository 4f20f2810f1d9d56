"""The two apps of a federation over several machines, for `flwr run`.

    [tool.flwr.app.components]
    serverapp = "galenic.launch.federation:server_app"
    clientapp = "galenic.launch.federation:client_app"

What they are told stands in `[tool.flwr.app.config]`: `recipe` (a name or a file), `data` and `out`
of the server. Each SuperNode has `--node-config 'data="/path/cohort.csv" client=0'`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from galenic.core.config import merge, parse
from galenic.core.errors import ConfigError
from galenic.core.recipes import Recipe, open_recipe
from galenic.core.run import Run
from galenic.federation import require_flower
from galenic.tasks import classify, federate
from galenic.tasks._federate_nodes import opened

require_flower()

from flwr.app import Context  # noqa: E402  not before it was asked to keep quiet
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from galenic.federation.client import client_app as _client_app  # noqa: E402
from galenic.federation.client import number_of  # noqa: E402

if TYPE_CHECKING:
    from galenic.federation.messages import Order
    from galenic.federation.update import Update


def recipe_of(context: Context) -> Recipe:
    """The recipe that `context` names.

    Raises:
        ConfigError: If there is none, or it is of another task.
    """
    name = context.run_config.get("recipe", "flora")
    recipe = open_recipe(str(name))
    if recipe.task != "federate":
        raise ConfigError(f"'{name}' is a recipe of the task '{recipe.task}'.", expected="federate")
    return recipe


def config_of(context: Context, data: Any) -> federate.Config:
    """The config of the recipe that `context` names, on this machine's own manifest.

    Raises:
        ConfigError: As :func:`recipe_of`, or if no manifest is named.
    """
    recipe = recipe_of(context)
    if not data:
        raise ConfigError(
            "No manifest was named.",
            next_step="Server: data in [tool.flwr.app.config]; client: --node-config 'data=\"...\"'",
        )
    return parse(federate.Config, merge(recipe.config, {"data": str(data)}))


def serve(grid: Grid, context: Context) -> None:
    """The server: a run folder like that of `galenic run`."""
    config = config_of(context, context.run_config.get("data"))
    run = Run.create(Path(str(context.run_config.get("out", "runs"))), "federation")
    recipe = recipe_of(context)
    run.start(
        config.model_dump(mode="json"),
        recipe=recipe.recipe,
        title=recipe.title,
        about=recipe.about.model_dump(),
        task=recipe.task,
        seed=config.seed,
    )
    with run.working():
        classify.carry_out(config, run, lambda told, made: federate.make(told, made, grid))


def train(order: Order, context: Context) -> Update:
    """A client: all training patients of its own manifest."""
    config = config_of(context, context.node_config.get("data"))
    job = opened(config.model_dump_json(), apart=True)
    return job.whole(number_of(context), order)


server_app = ServerApp()
server_app.main()(serve)
client_app = _client_app(train)
