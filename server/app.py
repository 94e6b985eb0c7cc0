"""The ServerApp. All it does lives in fedkd; this file only says where, and that both come from the same folder."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkd.flower.apps import same_folder, serve

same_folder(__file__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation as the run config says."""
    serve(grid, context)
