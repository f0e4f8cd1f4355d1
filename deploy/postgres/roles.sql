-- The log's database as psql variables name it: owner (makes the schema and upgrades it), service (what the processes
-- connect as) and schema. Run once, in that database, by whoever administers the server; may be repeated.
-- The roles themselves and their passwords come first, see docs/deploying.md.
--
-- The service may read the log and append to it by calling its functions. It may not update, delete or truncate: what
-- the triggers refuse to everybody is not even granted to it.
CREATE SCHEMA IF NOT EXISTS :"schema" AUTHORIZATION :"owner";
GRANT USAGE ON SCHEMA :"schema" TO :"service";
GRANT SELECT ON ALL TABLES IN SCHEMA :"schema" TO :"service";
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA :"schema" TO :"service";
-- And what later releases add.
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA :"schema" GRANT SELECT ON TABLES TO :"service";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA :"schema" GRANT EXECUTE ON FUNCTIONS TO :"service";
