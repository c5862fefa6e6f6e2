"""Every page of the dashboard. Another page is another file and one more line in PAGES.

A page is a module with
    PATH        its address, `/pairs/{teacher}/{student}`
    TITLE       its name, for the browser's tab
    NAV, HREF   (label, icon) and address for the menu, or NAV = None
    DRAWN       True where its first content is a figure: Plotly then comes with the page, not after it
    layout(reads, view) → component     may raise any ZoograftError; routing draws it
    require(reads, view)                where the path names something: raises NotFound if that is not there
    register(app, reads, actions)       its callbacks; never at module level, which would serve only the first app
    TABLES      name → (reads, view) → rows: the records behind its figures and grids, for CSV
Its state lives in the address: `dashboard.components.controls` writes it, callbacks read `url.search`.
"""

from types import ModuleType

from dashboard.pages import expertness, job, jobs, kdep, model, neurons, pair, pairs, plane, studies, study, zoo

PAGES: tuple[ModuleType, ...] = (
    zoo, model, pairs, pair, studies, study, plane, expertness, neurons, kdep, jobs, job,
)  # fmt: skip
