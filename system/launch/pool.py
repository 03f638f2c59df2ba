"""The reward pool of a run on Ray Serve: the run's own application, or a shared one that is already running."""

import logging
import uuid
from pathlib import Path

from ray import serve

from actors.reward.pool import RewardPool
from services.base.errors import UserError
from services.scoring.remote import wait_for_pool
from services.serving.app import build_app
from services.serving.settings import deployment_name
from system.launch.pool_start import PoolStart, delete_pool
from system.recipe.model import RunConfig

APP_FILE = "serve_app"
"""The file in the folder of logs that contains the name of the run's application."""


class ServedPool:
    """Starts the scorers of a recipe on Serve and deletes them at the end, or uses a shared pool.

    Args:
        logs: the folder for the scorers' log files.
    """

    def __init__(self, config: RunConfig, logs: Path) -> None:
        self.config, self.logs = config, logs
        self.app = config.reward.app or f"tempflow-{config.name}-{uuid.uuid4().hex[:8]}"

    def start(self) -> RewardPool:
        """Start the scorers, wait until all are ready, and return the pool of their handles.

        Raises:
            UserError: a scorer refuses to start, has no room or is late, or the shared pool lacks it.
        """
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        if self.config.reward.app:
            self._check_shared()
        else:
            self._deploy()
        handles = {
            scorer.name: serve.get_deployment_handle(deployment_name(scorer.name), self.app)
            for scorer in self.config.scorers
        }
        return RewardPool(handles, self.config.scorers, self.config.reward.concurrency, self.config.name)

    def delete(self) -> None:
        """Delete the application, unless it is shared."""
        if not self.config.reward.app:
            delete_pool(self.app)

    def _deploy(self) -> None:
        config = self.config
        self._delete_former()
        self.logs.mkdir(parents=True, exist_ok=True)
        (self.logs / APP_FILE).write_text(self.app)
        for url in {str(scorer.options["url"]) for scorer in config.scorers if scorer.scorer == "remote"}:
            wait_for_pool(url, config.ray.start_timeout_s)
        app = build_app(self.app, config.scorers, None, self.logs, config.name, config.deterministic)
        target = serve.RunTarget(app, name=self.app, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
        PoolStart(self.app, config.scorers).wait(config.ray.start_timeout_s)

    def _delete_former(self) -> None:
        """Delete the pool of this run's previous driver, if that driver was killed before it could."""
        file = self.logs / APP_FILE
        if file.exists() and (former := file.read_text()) in serve.status().applications:
            delete_pool(former)

    def _check_shared(self) -> None:
        running = serve.status().applications.get(self.app)
        if running is None:
            known = ", ".join(serve.status().applications) or "none"
            raise UserError(
                f"reward.app: no Serve application `{self.app}` on this cluster (running: {known}); start it with "
                "`tempflow serve`"
            )
        for scorer in self.config.scorers:
            if deployment_name(scorer.name) not in running.deployments:
                raise UserError(
                    f"reward.app: the pool `{self.app}` has no scorer `{scorer.name}`; serve the same recipe"
                )
