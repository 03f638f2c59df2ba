"""Writes the files for Grafana and the Prometheus operator, from the panels below and rules.yaml.

    python deploy/monitoring/build.py

dashboards/*.json       one dashboard per role
prometheus-rule.yaml    rules.yaml as the operator's PrometheusRule
"""

from dataclasses import dataclass
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders.common import VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, SortOrder, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef, VariableOption, VariableRefresh

from services.base.text import read_text
from services.base.yaml_text import load_yaml

HERE = Path(__file__).parent
WIDTH, HEIGHT = 8, 8
"""The size of a panel in Grafana's grid. The grid is 24 wide, so there are three panels in a row."""
WINDOW = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """A panel with time series of one or several expressions."""

    title: str
    expressions: dict[str, str]
    """The expressions by their legends."""
    unit: str = "short"


def series(name: str, where: str = "") -> str:
    return f'ray_tempflow_{name}{{run=~"$run"{where}}}'


def last(tags: str, name: str, where: str = "") -> str:
    """A gauge. A run that was just resumed may briefly have two, so the larger one is used."""
    return f"max by ({tags}) ({series(name, where)})"


def rate(tags: str, name: str, where: str = "") -> str:
    return f"sum by ({tags}) (rate({series(name, where)}{WINDOW}))"


def so_far(tags: str, name: str) -> str:
    """A counter of events. Ray exports it only from the first event on; before that, this gives 0."""
    return f"sum by ({tags}) ({series(name)}) or on (run) 0 * {last('run', 'policy_version')}"


def pool(name: str) -> str:
    """A metric of Ray Serve, for each deployment."""
    return f'sum by (application, deployment) (ray_serve_{name}{{deployment=~"scorer-.*"}})'


POOL = "application, scorer"


def of_pool(how: str, name: str) -> str:
    """A metric of the pool's replicas, over all callers together."""
    return f"{how} by ({POOL}) (ray_tempflow_scorer_{name})"


def share(part: str, of: str) -> str:
    return f"{part} / {of}"


def rate_of_pool(name: str, by: str = POOL) -> str:
    return f"sum by ({by}) (rate(ray_tempflow_scorer_{name}{WINDOW}))"


DASHBOARDS = {
    "training": [
        Panel("Training steps", {"{{run}}": last("run", "policy_version")}),
        Panel("Training reward", {"{{run}}": last("run", "reward_mean")}),
        Panel("Held-out scores", {"{{run}} {{set}} {{scorer}}": last("run, set, scorer", "heldout_score")}),
        Panel("Training scores", {"{{run}} {{scorer}}": last("run, scorer", "score_mean")}),
        Panel("Standard deviation of scores", {"{{run}} {{scorer}}": last("run, scorer", "score_std")}),
        Panel(
            "Groups whose rewards do not differ",
            {
                "{{run}}": last("run", "flat_groups_ratio"),
                "{{run}} by {{scorer}} alone": last("run, scorer", "score_flat_groups_ratio"),
            },
            "percentunit",
        ),
        Panel(
            "Shares of the advantages",
            {"{{run}} {{scorer}}": last("run, scorer", "score_advantage_ratio")},
            "percentunit",
        ),
        Panel("Seconds by stage", {"{{run}} {{stage}}": last("run, stage", "stage_seconds")}, "s"),
        Panel("Idle share by role", {"{{run}} {{role}}": last("run, role", "idle_ratio")}, "percentunit"),
        Panel("Since the last step", {"{{run}}": f"time() - {last('run', 'recorded_timestamp_seconds')}"}, "s"),
        Panel("NFE a second", {"{{run}} {{work}}": rate("run, work", "nfe_total")}),
        Panel("Images a second", {"{{run}}": rate("run", "images_total")}),
        Panel(
            "Held-out scores by category",
            {"{{run}} {{set}} {{scorer}} {{category}}": last("run, set, scorer, category", "heldout_category_score")},
        ),
        Panel(
            "Held-out images without a score",
            {"{{run}} {{set}} {{scorer}}": last("run, set, scorer", "heldout_holes")},
        ),
        Panel("Steps an hour", {"{{run}}": f"3600 * {rate('run', 'steps_total')}"}),
    ],
    "rollout": [
        Panel("Workers", {"{{run}}": last("run", "rollout_workers")}),
        Panel("Workers replaced so far", {"{{run}}": so_far("run", "rollout_workers_replaced_total")}),
        Panel(
            "Policy versions behind",
            {
                "{{run}} worker {{worker}}": f"{last('run', 'policy_version')} - on (run) group_right "
                + last("run, worker", "rollout_policy_version")
            },
        ),
        Panel("Staleness of the experience", {"{{run}}": last("run", "staleness_versions")}),
        Panel("NFE a second", {"{{run}}": rate("run", "nfe_total", ',work="generate"')}),
        Panel("Padding rows a second", {"{{run}}": rate("run", "padding_rows_total")}),
        Panel("Reward spread by step", {"{{run}} {{sampling_step}}": last("run, sampling_step", "branch_reward_std")}),
        Panel("Images that are not finite so far", {"{{run}}": so_far("run", "images_not_finite_total")}),
        Panel("Images in flight, most in a step", {"{{run}}": last("run", "images_in_flight_peak_bytes")}, "bytes"),
        Panel(
            "GPU memory",
            {"{{run}} {{NodeAddress}}": last("run, NodeAddress", "gpu_memory_bytes", ',role=~"rollout|colocated"')},
            "bytes",
        ),
    ],
    "reward-pool": [
        Panel(
            "Replicas",
            {
                "{{application}} {{deployment}} healthy": pool("deployment_replica_healthy"),
                "{{application}} {{scorer}} minimum": of_pool("max", "replicas_min"),
            },
        ),
        Panel(
            "Requests that wait for a replica",
            {"{{application}} {{deployment}}": pool("deployment_queued_queries")},
        ),
        Panel("Requests in replicas", {"{{application}} {{scorer}}": of_pool("sum", "requests")}),
        Panel(
            "Share of the time that replicas score",
            {"{{application}} {{scorer}}": share(rate_of_pool("busy_seconds_total"), of_pool("count", "replicas_min"))},
            "percentunit",
        ),
        Panel(
            "Images scored a second",
            {"{{application}} {{run}} {{scorer}}": rate("application, run, scorer", "scorer_images_total")},
        ),
        Panel(
            "Request time, measured by the pool",
            {
                f"{{{{application}}}} {{{{scorer}}}} {quantile:.0%}": f"histogram_quantile({quantile}, {buckets})"
                for buckets in [rate_of_pool("request_seconds_bucket", f"{POOL}, le")]
                for quantile in (0.5, 0.95)
            },
            "s",
        ),
        Panel(
            "Request time, measured by training",
            {"{{run}} {{scorer}}": last("run, scorer", "pool_request_seconds")},
            "s",
        ),
        Panel(
            "Images scored together",
            {"{{application}} {{scorer}}": share(rate_of_pool("batch_images_sum"), rate_of_pool("batch_images_count"))},
        ),
        Panel("Scores missing so far", {"{{run}} {{scorer}}": so_far("run, scorer", "scorer_holes_total")}),
        Panel("Requests failed so far", {"{{run}} {{scorer}}": so_far("run, scorer", "scorer_failures_total")}),
        Panel("Requests sent again so far", {"{{run}}": so_far("run", "score_retries_total")}),
        Panel("Cold start", {"{{application}} {{scorer}}": of_pool("max", "load_seconds")}, "s"),
        Panel(
            "GPU memory",
            {"{{NodeAddress}}": 'max by (NodeAddress) (ray_tempflow_gpu_memory_bytes{role="reward"})'},
            "bytes",
        ),
    ],
    "learner": [
        Panel("Loss", {"{{run}}": last("run", "loss")}),
        Panel("KL to the reference", {"{{run}}": last("run", "kl")}),
        Panel("Gradient norm before clipping", {"{{run}}": last("run", "grad_norm")}),
        Panel("Ratio, mean", {"{{run}}": last("run", "policy_ratio_mean")}),
        Panel(
            "Ratio, largest deviation from 1",
            {
                "{{run}}": last("run", "policy_ratio_max_deviation"),
                "{{run}} before the first optimizer step": last("run", "policy_ratio_first_deviation"),
            },
        ),
        Panel("Actions that the clip cuts", {"{{run}}": last("run", "clipped_actions_ratio")}, "percentunit"),
        Panel("Drift", {"{{run}} mean": last("run", "drift_mean"), "{{run}} max": last("run", "drift_max")}),
        Panel("Drift by step", {"{{run}} {{sampling_step}}": last("run, sampling_step", "drift_step_mean")}),
        Panel("Actions without a reward so far", {"{{run}}": so_far("run", "action_holes_total")}),
        Panel("NFE a second", {"{{run}}": rate("run", "nfe_total", ',work="learn"')}),
        Panel("Restarts so far", {"{{run}}": so_far("run", "learner_restarts_total")}),
        Panel(
            "GPU memory",
            {"{{run}} {{NodeAddress}}": last("run, NodeAddress", "gpu_memory_bytes", ',role=~"learner|colocated"')},
            "bytes",
        ),
    ],
}


SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def dashboard(name: str, panels: list[Panel]) -> Dashboard:
    """A dashboard. The user can choose the data source and the runs."""
    run = (
        QueryVariable("run")
        .label("Run")
        .datasource(SOURCE)
        .query("label_values(ray_tempflow_policy_version, run)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )
    shown = (
        Dashboard(f"tempflow: {name.replace('-', ' ')}")
        .uid(f"tempflow-{name}")
        .tags(["tempflow"])
        .refresh("10s")
        .time("now-1h", "now")
        .link(DashboardLink("tempflow").type(DashboardLinkType.DASHBOARDS).tags(["tempflow"]))
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(run)
    )
    for number, panel in enumerate(panels, 1):
        shown.with_panel(_time_series(number, panel))
    return shown


def _time_series(number: int, panel: Panel) -> TimeSeries:
    shown = (
        TimeSeries()
        .id(number)
        .title(panel.title)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(WIDTH)
        .height(HEIGHT)
        .legend(
            VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.NONE))
    )
    for n, (legend, expression) in enumerate(panel.expressions.items()):
        letter = chr(ord("A") + n)
        shown.with_target(Dataquery().ref_id(letter).datasource(SOURCE).expr(expression).legend_format(legend))
    return shown


def built() -> dict[str, str]:
    """The text of each file, by its path below this folder."""
    files = {
        f"dashboards/{name}.json": JSONEncoder(indent=1).encode(dashboard(name, panels).build()) + "\n"
        for name, panels in DASHBOARDS.items()
    }
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tempflow"},
        "spec": load_yaml(read_text(HERE / "rules.yaml"), "rules.yaml"),
    }
    files["prometheus-rule.yaml"] = "# Written by build.py from rules.yaml.\n" + yaml.safe_dump(rule, sort_keys=False)
    return files


if __name__ == "__main__":
    (HERE / "dashboards").mkdir(exist_ok=True)
    for path, text in built().items():
        (HERE / path).write_text(text)
