CREATE TABLE rollouts (
    added INTEGER PRIMARY KEY,         -- sequence number of `add`
    id TEXT NOT NULL UNIQUE,
    changed INTEGER NOT NULL UNIQUE,   -- sequence number of the last change of status
    status TEXT NOT NULL,
    mode TEXT NOT NULL,
    step INTEGER,
    grp TEXT,
    queueable INTEGER NOT NULL,        -- 0: made by `begin`
    max_attempts INTEGER NOT NULL,
    value BLOB NOT NULL                -- Rollout
);
CREATE INDEX rollouts_by_status ON rollouts (status, mode, added);
CREATE INDEX rollouts_by_step ON rollouts (step, added) WHERE step IS NOT NULL;
CREATE INDEX rollouts_by_group ON rollouts (grp, added) WHERE grp IS NOT NULL;
CREATE TABLE attempts (
    number_in_file INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    rollout INTEGER NOT NULL REFERENCES rollouts (added),
    number INTEGER NOT NULL,
    key TEXT NOT NULL UNIQUE,
    worker TEXT NOT NULL,
    status TEXT NOT NULL,
    started REAL NOT NULL,
    finished REAL,
    error TEXT,
    expires REAL NOT NULL,             -- end of the lease, seconds since the epoch
    UNIQUE (rollout, number)
);
CREATE INDEX attempts_by_lease ON attempts (expires) WHERE status = 'running';
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    attempt INTEGER NOT NULL REFERENCES attempts (number_in_file),
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    base INTEGER REFERENCES records (seq),  -- the completion whose prompt and response this one's prompt starts with
    prompt BLOB,                            -- of a completion: its prompt_ids after those of `base`
    value BLOB NOT NULL,                    -- Call, Span, Reward, or Completion without its prompt
    UNIQUE (id, kind)
);
CREATE INDEX records_by_attempt ON records (attempt, seq);
CREATE INDEX records_by_base ON records (base) WHERE base IS NOT NULL;
CREATE TABLE policies (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    value BLOB NOT NULL,               -- Policy
    PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE TABLE sequence (
    newest INTEGER NOT NULL            -- one row: the newest sequence number at the last deletion
);
INSERT INTO sequence VALUES (0);
PRAGMA application_id = 1095191667;
PRAGMA user_version = 3;
