"""The paper's Table 1, filled with runs: their mean and deviation beside its values, in a terminal and on the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bokeh.models import ColumnDataSource, FactorRange, HoverTool, NumeralTickFormatter
from rich.console import Console
from rich.table import Table

from .figures import COLOURS, GREY, Figures, plot
from .paper import COLUMNS, TABLE_1, Row
from .runs import STRATEGIES, Run
from .summary import Spread, Summary, summarise
from .words import DATA_SETS

TITLES = (*(STRATEGIES[column] for column in COLUMNS), "Supervised")
ABOUT = ("Mean IoU after the last round, best epoch, ± one standard deviation over seeds; the paper chooses the epoch "
         "in the same way. A run that has not finished its rounds has no difference.")


@dataclass(frozen=True)
class Cell:
    """One number of Table 1, and the run that stands for it."""

    paper: float
    run: Summary | None

    @property
    def here(self) -> Spread | None:
        """None until the run has finished its rounds."""
        return self.run.best if self.run and self.run.difference is not None else None


@dataclass(frozen=True)
class Line:
    """A row of Table 1 with a cell for each of `TITLES`."""

    row: Row
    cells: tuple[Cell, ...]

    @property
    def title(self) -> str:
        row = self.row
        return (f"{DATA_SETS[row.dataset]}, {'finetuned' if row.finetuned else 'frozen'}, "
                f"{row.n_initial_images * 16} + {row.rounds} × {row.n_query}")


def fill(runs: Sequence[Run]) -> list[Line]:
    """The rows of Table 1 that any run belongs to, a supervised one alone not counting; of two runs for one cell the
    first is taken."""
    summaries = list(zip(runs, summarise(runs), strict=True))

    def find(row: Row, column: str) -> Summary | None:
        for run, summary in summaries:
            config, query = run.config, run.config.query
            if run.reference is None or run.reference.miou is None or row.dataset != config.data.dataset or (
                    row.finetuned == config.model.freeze_backbone):
                continue
            budget = (query.n_initial_images, query.n_query, query.rounds)
            same = budget == (row.n_initial_images, row.n_query, row.rounds) and query.strategy == column
            if run.supervised if column == "supervised" else same and not run.supervised:
                return summary
        return None

    lines = [Line(row, tuple(Cell(paper, find(row, column)) for column, paper in
                             zip((*COLUMNS, "supervised"), (*row.miou, row.supervised), strict=True)))
             for row in TABLE_1]
    return [line for line in lines if any(cell.run for cell in line.cells[:-1])]


def worth_showing(lines: Sequence[Line]) -> bool:
    """Whether two cells or more are filled: a single value stands beside the paper's in the summary already."""
    return sum(cell.run is not None for line in lines for cell in line.cells) > 1


def print_table1(runs: Sequence[Run], console: Console) -> None:
    """Print the rows of Table 1 that two or more of the runs fill; nothing where there are none."""
    lines = fill(runs)
    if not worth_showing(lines):
        return
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("Table 1", max_width=28)
    for title in TITLES:
        table.add_column(title, justify="right")
    for line in lines:
        table.add_row(f"[bold]{line.title}[/]", *(_here(cell) for cell in line.cells))
        table.add_row("  the paper", *(f"{cell.paper:.3f}" for cell in line.cells), style="dim")
        table.add_row("  difference", *(_difference(cell) for cell in line.cells))
    console.print(table, width=min(100, console.width))
    console.print(f"- {ABOUT}", width=min(100, console.width), style="dim", highlight=False)


def _here(cell: Cell) -> str:
    if cell.run is None:
        return "–"
    if cell.here is None:
        return f"{cell.run.rounds}/{cell.run.rounds_asked} rounds"
    missing = cell.run.seeds < cell.run.seeds_asked
    return str(cell.here).replace(" ± ", " ±") + f" ({cell.run.seeds}/{cell.run.seeds_asked} seeds)" * missing


def _difference(cell: Cell) -> str:
    return "" if cell.here is None else f"{cell.here.mean - cell.paper:+.3f}"


def html(runs: Sequence[Run], figures: Figures) -> str:
    """The same as a table and a figure; empty where there is nothing worth showing."""
    lines = fill(runs)
    if not worth_showing(lines):
        return ""
    head = "".join(f'<th scope="col">{title}</th>' for title in ("", *TITLES))
    body = ""
    for line in lines:
        here = "".join(f"<td><b>{escape(_here(cell))}</b></td>" for cell in line.cells)
        paper = "".join(f"<td>{cell.paper:.3f}</td>" for cell in line.cells)
        difference = "".join(f"<td>{_difference(cell)}</td>" for cell in line.cells)
        body += (f'<tr><th scope="row">{escape(line.title)}</th>{here}</tr>'
                 f'<tr><th scope="row">the paper</th>{paper}</tr>'
                 f'<tr class="total"><th scope="row">difference</th>{difference}</tr>')
    drawn = "".join(f"<h3>{escape(line.title)}</h3>{_figure(line, figures)}" for line in lines
                    if any(cell.here for cell in line.cells))
    note = "Dots: the runs, with ± one standard deviation; dashes: the paper."
    return (f'<p class="note">{ABOUT}</p><div class="scroll"><table class="wide"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{drawn}" + (f'<p class="note">{note}</p>' if drawn else ""))


def _figure(line: Line, figures: Figures) -> str:
    canvas = plot(height=260, toolbar_location=None, tools="", x_range=FactorRange(*TITLES))
    canvas.yaxis.axis_label = "validation mIoU"
    canvas.yaxis.formatter = NumeralTickFormatter(format="0.00")
    canvas.scatter(TITLES, [cell.paper for cell in line.cells], marker="dash", size=34, line_color=GREY, line_width=3)
    there = [(title, cell.here, cell.paper) for title, cell in zip(TITLES, line.cells, strict=True) if cell.here]
    source = ColumnDataSource({
        "x": [title for title, *_ in there], "y": [here.mean for _, here, _ in there],
        "low": [here.mean - (here.std or 0) for _, here, _ in there],
        "high": [here.mean + (here.std or 0) for _, here, _ in there],
        "tint": [COLOURS.get(title, GREY) for title, *_ in there],
        "text": [f"{here} ({here.n} seed{'s' * (here.n > 1)})" for _, here, _ in there],
        "paper": [f"{paper:.3f} ({here.mean - paper:+.3f})" for _, here, paper in there],
    })
    canvas.segment("x", "low", "x", "high", source=source, line_color="tint", line_width=2)
    dots = canvas.scatter("x", "y", source=source, size=10, fill_color="tint", line_color="white", line_width=1)
    canvas.add_tools(HoverTool(renderers=[dots], tooltips=[("run", "@x"), ("mIoU", "@text"), ("paper", "@paper")]))
    return figures.add(canvas)
