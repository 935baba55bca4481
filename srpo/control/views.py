"""SQL views in the ledger file, for whoever reads it with a tool of their own; docs/ledger.md describes them.

They are derived from what `srpo.control.ledger` records and hold nothing themselves. The SQL keeps to what DuckDB
understands too: its SQLite reader parses a view by itself.
"""

from __future__ import annotations

VIEWS = ("pass_rates", "retention", "flow", "unsolved", "regressed")

SQL = """
CREATE VIEW IF NOT EXISTS pass_rates AS
    SELECT epoch, step, stage, domain, prompt_id, samples, correct, CAST(correct AS DOUBLE) / samples AS pass_rate,
        CASE WHEN correct = samples THEN 'correct' WHEN mixed = 1 THEN 'mixed' ELSE 'wrong' END AS state,
        reward, spread, CAST(tokens AS DOUBLE) / samples AS mean_tokens, truncated, trained
    FROM prompts;

CREATE VIEW IF NOT EXISTS retention AS
    SELECT epoch, stage, prompts, kept, dropped,
        (SELECT COUNT(*) FROM decisions WHERE decision = 'returned' AND decisions.epoch = epochs.epoch) AS returned,
        CASE WHEN prompts > 0 THEN CAST(kept AS DOUBLE) / prompts END AS retained
    FROM epochs;

CREATE VIEW IF NOT EXISTS flow AS
    SELECT from_epoch, epoch AS to_epoch, domain, before, state AS after, COUNT(*) AS prompts
    FROM (SELECT epoch, domain, state, LAG(epoch) OVER earlier AS from_epoch, LAG(state) OVER earlier AS before
          FROM pass_rates WINDOW earlier AS (PARTITION BY prompt_id ORDER BY epoch)) AS seen
    WHERE from_epoch IS NOT NULL
    GROUP BY from_epoch, epoch, domain, before, state;

CREATE VIEW IF NOT EXISTS unsolved AS
    SELECT prompt_id, MIN(domain) AS domain, COUNT(*) AS epochs, MAX(epoch) AS last_epoch, SUM(samples) AS samples
    FROM prompts
    GROUP BY prompt_id HAVING SUM(correct) = 0;

CREATE VIEW IF NOT EXISTS regressed AS
    SELECT prompt_id, domain, from_epoch, epoch AS to_epoch, pass_rate_before, pass_rate AS pass_rate_after,
        pass_rate_before - pass_rate AS fell
    FROM (SELECT prompt_id, domain, epoch, pass_rate, LAG(epoch) OVER earlier AS from_epoch,
              LAG(pass_rate) OVER earlier AS pass_rate_before
          FROM pass_rates WINDOW earlier AS (PARTITION BY prompt_id ORDER BY epoch)) AS seen
    WHERE pass_rate < pass_rate_before;
"""
