-- A journal as the first schema wrote it.
PRAGMA journal_mode = wal;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE apps (
  name TEXT PRIMARY KEY, revision TEXT NOT NULL, target INTEGER NOT NULL, seq INTEGER NOT NULL,
  deleting INTEGER NOT NULL, applied_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE revisions (
  app TEXT NOT NULL, id TEXT NOT NULL, manifest TEXT NOT NULL, image TEXT NOT NULL,
  applied_ms INTEGER NOT NULL, PRIMARY KEY (app, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE instances (
  app TEXT NOT NULL, ordinal INTEGER NOT NULL, generation INTEGER NOT NULL,
  create_generation INTEGER NOT NULL, revision TEXT NOT NULL, phase TEXT NOT NULL,
  serving INTEGER NOT NULL, warmth TEXT, task_id TEXT, traceparent TEXT, address TEXT,
  registered INTEGER NOT NULL, urgency TEXT NOT NULL, released_ms INTEGER,
  PRIMARY KEY (app, ordinal)
) STRICT, WITHOUT ROWID;
CREATE TABLE tasks (
  task_id TEXT PRIMARY KEY, app TEXT NOT NULL, verb TEXT NOT NULL, wanted INTEGER NOT NULL,
  hash TEXT NOT NULL, traceparent TEXT NOT NULL, target INTEGER NOT NULL, seq INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, deadline_ms INTEGER NOT NULL, finished_ms INTEGER, outcome TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_by_time ON tasks (created_ms);
CREATE TABLE trails (task_id TEXT PRIMARY KEY, trail TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE operations (
  id INTEGER PRIMARY KEY AUTOINCREMENT, app TEXT NOT NULL, changes INTEGER NOT NULL
) STRICT;
INSERT INTO meta VALUES ('boot_id', 'b1');
INSERT INTO apps VALUES ('web', 'r1', 2, 5, 0, 7);
INSERT INTO revisions VALUES ('web', 'r1',
  'apiVersion: nodeagent/v1
kind: App
metadata: {name: web}
spec:
  image: 127.0.0.1:5000/web:1
  ports: [{name: http, containerPort: 8080}]
',
  '{"reference":"127.0.0.1:5000/web:1","digest":"sha256:1","config_digest":"sha256:2","chain_id":"sha256:3","config":{"entrypoint":[],"cmd":["httpd"],"env":[],"working_dir":null,"user":null,"stop_signal":null}}', 7);
INSERT INTO instances VALUES
  ('web', 0, 4, 3, 'r1', 'active', 1, 'armed', 'up', '00-1-1-01', '10.88.0.1', 1, 'drain', NULL),
  ('web', 1, 2, 2, 'r1', 'armed', 0, NULL, NULL, NULL, '10.88.0.2', 0, 'drain', NULL);
INSERT INTO tasks VALUES ('up', 'web', 'activate', 2, 'h', '00-1-1-01', 2, 5, 1000, 60000, NULL, NULL);
PRAGMA user_version = 1;
