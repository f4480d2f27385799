"""What tests of the particle view's page wait for and read."""

RESTED = "root._stats.renders > 0 && root._stats.rests === root._stats.renders"
"""The view has drawn everything, and the rows in sight are real text."""
SEND = """traits => {
    const revived = revive(traits);
    Object.assign(model.state, revived);
    for (const name of Object.keys(revived)) {
        (model.handlers['change:' + name] || []).forEach(act => act());
    }
}"""
UNMARKED = """[...root.querySelectorAll('button, select, input, a, summary, [tabindex]'), root]
    .filter(node => node.dataset.lmSuppressShortcuts !== 'true').map(node => node.outerHTML)"""
"""What can have the focus and lets JupyterLab read its keys."""


def press_main(page, status):
    """Tell a view of a status: the words on its main button, and what a press of it asks for."""
    page.evaluate("status => { model.state.ask = {}; model.set('status', status); }", status)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    button = page.locator(".tl-main")
    if button.is_enabled():
        button.press("Enter")
    return button.inner_text(), page.evaluate("model.state.ask.act ?? null")


def press_keys(page, *keys, at=".pv-scroller"):
    """Press keys where the first element of this kind has the focus."""
    page.locator(at).first.focus()
    for key in keys:
        page.keyboard.press(key)


def wait_for_step(page, step):
    """Until this step is on show, and at rest."""
    page.wait_for_function(f"root._stats.t === {step} && {RESTED}")


def draw_after(page, act):
    """Act, and wait until the view has been drawn once more and rests."""
    before = page.evaluate("root._stats.renders")
    act()
    page.wait_for_function(f"root._stats.renders > {before} && {RESTED}")


def choose(page, label, option):
    """Take an option of a menu."""
    draw_after(page, lambda: page.get_by_label(label).select_option(option))


def row(page, slot):
    """The row whose particle stands in this slot at the shown step."""
    return page.locator(f'.pv-row[data-slot="{slot}"]')


def row_texts(page, slot):
    """The words of a row in sight."""
    cells = row(page, slot).locator(".pv-cell").all_text_contents()
    return [cell.strip() for cell in cells if cell]


def selected_slots(page):
    """Slots of the rows that are selected, from the top."""
    rows = page.locator('.pv-row[aria-selected="true"]')
    return [rows.nth(i).get_attribute("data-slot") for i in range(rows.count())]


def slots_from_the_top(page):
    """Slots of the rows in sight, in their order on the page."""
    return page.evaluate(
        """[...root.querySelectorAll('.pv-row')]
            .sort((a, b) => a.getAttribute('aria-posinset') - b.getAttribute('aria-posinset'))
            .map(row => Number(row.dataset.slot))"""
    )
