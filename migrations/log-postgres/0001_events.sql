-- The log. `@schema@` stands for the schema that the log is kept in. `leaf` holds the very bytes that were hashed (see
-- docs/log-format.md); what is beside it says where things are, and is compared with the leaf whenever an event is read.
CREATE TABLE @schema@.events (
    position    bigint PRIMARY KEY,
    recorded_at bigint NOT NULL,                -- microseconds since 1970, UTC
    revision    bigint NOT NULL,
    category    integer NOT NULL,               -- of words
    id          uuid NOT NULL,
    correlation uuid NOT NULL,
    stream      text COLLATE "C" NOT NULL,
    hash        bytea NOT NULL,                 -- SHA-256 of leaf
    seal        bytea NOT NULL,                 -- over position, recorded_at and hash, which the leaf does not cover
    leaf        bytea NOT NULL,
    salt        bytea,                          -- NULL, as is data, after a redaction
    data        bytea,
    UNIQUE (stream, revision)
);
CREATE INDEX events_by_id ON @schema@.events (id);
CREATE INDEX events_by_correlation ON @schema@.events (correlation, position);
CREATE INDEX events_by_category ON @schema@.events (category, position);

-- Tags as `t:<tag>`, categories as `c:<category>`.
CREATE TABLE @schema@.words (
    id   integer PRIMARY KEY,
    word text COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE @schema@.tags (
    word     integer NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (word, position)
);

CREATE TABLE @schema@.redactions (
    event    bigint PRIMARY KEY REFERENCES @schema@.events (position),
    event_id uuid NOT NULL,
    record   bigint NOT NULL REFERENCES @schema@.events (position)
);

-- Who is alive: no events, not durable, empty after a crash of the server.
CREATE UNLOGGED TABLE @schema@.beats (
    who     text COLLATE "C" PRIMARY KEY,
    counter bigint NOT NULL,
    at      bigint NOT NULL,                    -- microseconds since 1970, UTC
    facts   text NOT NULL                       -- JSON
);

CREATE FUNCTION @schema@.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of %: what is in the log is never changed or deleted', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER events_are_never_deleted BEFORE DELETE OR TRUNCATE ON @schema@.events
    FOR EACH STATEMENT EXECUTE FUNCTION @schema@.refuse();
CREATE TRIGGER words_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON @schema@.words
    FOR EACH STATEMENT EXECUTE FUNCTION @schema@.refuse();
CREATE TRIGGER tags_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON @schema@.tags
    FOR EACH STATEMENT EXECUTE FUNCTION @schema@.refuse();
CREATE TRIGGER redactions_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON @schema@.redactions
    FOR EACH STATEMENT EXECUTE FUNCTION @schema@.refuse();

CREATE FUNCTION @schema@.refuse_a_change() RETURNS trigger LANGUAGE plpgsql SET search_path = @schema@, pg_temp AS $$
BEGIN
    IF (NEW.position, NEW.recorded_at, NEW.revision, NEW.category, NEW.id, NEW.correlation, NEW.stream, NEW.hash,
        NEW.seal, NEW.leaf)
       IS NOT DISTINCT FROM
       (OLD.position, OLD.recorded_at, OLD.revision, OLD.category, OLD.id, OLD.correlation, OLD.stream, OLD.hash,
        OLD.seal, OLD.leaf)
       AND NEW.salt IS NULL AND NEW.data IS NULL
       AND EXISTS (SELECT FROM redactions r WHERE r.event = OLD.position)
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'events are never changed, but for a redaction that is recorded in the log'
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON @schema@.events
    FOR EACH ROW EXECUTE FUNCTION @schema@.refuse_a_change();

CREATE FUNCTION @schema@.refuse_a_gap() RETURNS trigger LANGUAGE plpgsql SET search_path = @schema@, pg_temp AS $$
DECLARE
    v_first bigint;
    v_last  bigint;
    v_count bigint;
BEGIN
    SELECT min(a.position), max(a.position), count(*) INTO v_first, v_last, v_count FROM added a;
    IF v_count > 0 AND (v_last - v_first + 1 <> v_count OR v_first < 1
        OR v_first > 1 AND NOT EXISTS (SELECT FROM events e WHERE e.position = v_first - 1))
    THEN
        RAISE EXCEPTION 'events are only appended: position % is not the next one', v_first
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER events_follow_each_other AFTER INSERT ON @schema@.events REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION @schema@.refuse_a_gap();

CREATE FUNCTION @schema@.refuse_an_unrecorded_redaction() RETURNS trigger LANGUAGE plpgsql
SET search_path = @schema@, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM events redacted, events record
        WHERE redacted.position = NEW.event AND redacted.id = NEW.event_id AND redacted.stream <> 'log'
          AND record.position = NEW.record AND record.stream = 'log'
          AND position('log.redacted'::bytea IN record.leaf) > 0
          AND position(replace(NEW.event_id::text, '-', '')
                       IN replace(lower(encode(record.data, 'escape')), '-', '')) > 0
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a redaction needs a log.redacted event that names the event'
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER redactions_are_recorded BEFORE INSERT ON @schema@.redactions
    FOR EACH ROW EXECUTE FUNCTION @schema@.refuse_an_unrecorded_redaction();

-- Takes the one lock of this log until the end of the transaction, and says where the log ends. All that writes comes
-- through here, one after the other, so a position is visible before a later one is given: positions are the order of
-- commits. Every statement after this must see what was committed before the lock was had, which only READ COMMITTED does.
CREATE FUNCTION @schema@.take_turn(OUT o_position bigint, OUT o_recorded_at bigint) LANGUAGE plpgsql
SET search_path = @schema@, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the log is written in READ COMMITTED, not in %', current_setting('transaction_isolation')
            USING ERRCODE = 'active_sql_transaction';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('beampipe log @schema@', 0));
    SELECT e.position, e.recorded_at INTO o_position, o_recorded_at
    FROM events e ORDER BY e.position DESC LIMIT 1;
    o_position := coalesce(o_position, 0);
    o_recorded_at := coalesce(o_recorded_at, 0);
END $$;

-- The numbers of words, in their order; unknown ones are given the next. The caller has the lock.
CREATE FUNCTION @schema@.numbers_of(p_words text[]) RETURNS integer[] LANGUAGE plpgsql
SET search_path = @schema@, pg_temp AS $$
DECLARE
    v_ids integer[];
BEGIN
    FOR turn IN 1..2 LOOP
        SELECT array_agg(w.id ORDER BY t.i) INTO v_ids
        FROM unnest(p_words) WITH ORDINALITY AS t (word, i) LEFT JOIN words w ON w.word = t.word;
        EXIT WHEN array_position(v_ids, NULL) IS NULL;
        INSERT INTO words (id, word)
        SELECT (SELECT coalesce(max(k.id), 0) FROM words k) + row_number() OVER (), t.word
        FROM unnest(p_words, v_ids) AS t (word, id) WHERE t.id IS NULL;
    END LOOP;
    RETURN v_ids;
END $$;

-- Writes the appends of one group, each on its own: the conflict of one is no concern of the others.
--
-- An append i goes to p_streams[i], expects p_expected_*[i] (NULL: no stream) and leaves the stream at p_last_*[i];
-- p_befores[i] is the append before it in this group that goes to the same stream, or 0. Event j belongs to append
-- p_owners[j]; appends and their events are in order. Category and tags are places in p_words; tag k is of event
-- p_tag_events[k]. With p_redacts the one event of the one append is the record that redacts the event at that position.
--
-- Answers for each append: 'w' written, 'r' the very same events were there already, 'c' conflict; the position of its
-- last event (NULL for a conflict); and where its stream is now (NULL: there is none).
CREATE FUNCTION @schema@.append(
    p_streams text[], p_befores integer[], p_expected_revisions bigint[], p_expected_hashes bytea[],
    p_last_revisions bigint[], p_last_hashes bytea[],
    p_owners integer[], p_revisions bigint[], p_categories integer[], p_ids uuid[], p_correlations uuid[],
    p_hashes bytea[], p_leaves bytea[], p_salts bytea[], p_data bytea[],
    p_words text[], p_tag_words integer[], p_tag_events integer[], p_redacts bigint,
    OUT outcomes text, OUT positions bigint[], OUT revisions bigint[], OUT hashes bytea[],
    OUT recorded_at bigint, OUT before bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = @schema@, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_next     bigint;
    v_places   bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(p_owners)]);
    v_words    integer[];
    v_found    bigint;
    v_repeated boolean := false;
BEGIN
    SELECT t.o_position, t.o_recorded_at INTO before, recorded_at FROM take_turn() t;
    recorded_at := greatest(recorded_at, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    v_next := before;
    outcomes := '';
    positions := array_fill(NULL::bigint, ARRAY[cardinality(p_streams)]);

    -- Sorted once, not by each array_agg.
    SELECT array_agg(h.revision), array_agg(h.hash) INTO revisions, hashes
    FROM (
        SELECT l.revision, l.hash FROM unnest(p_streams) WITH ORDINALITY AS s (name, i)
        LEFT JOIN LATERAL (
            SELECT e.revision, e.hash FROM events e WHERE e.stream = s.name ORDER BY e.revision DESC LIMIT 1
        ) l ON true
        ORDER BY s.i
    ) h;

    -- From here on revisions and hashes say of each append where its stream is once it was decided.
    FOR i IN 1..cardinality(p_streams) LOOP
        IF p_befores[i] > 0 THEN
            revisions[i] := revisions[p_befores[i]];
            hashes[i] := hashes[p_befores[i]];
        END IF;
        IF revisions[i] IS NOT DISTINCT FROM p_expected_revisions[i]
           AND hashes[i] IS NOT DISTINCT FROM p_expected_hashes[i]
        THEN
            revisions[i] := p_last_revisions[i];
            hashes[i] := p_last_hashes[i];
            positions[i] := 0;
        END IF;
    END LOOP;
    FOR j IN 1..cardinality(p_owners) LOOP
        IF positions[p_owners[j]] IS NOT NULL THEN
            v_next := v_next + 1;
            v_places[j] := v_next;
            positions[p_owners[j]] := v_next;
        END IF;
    END LOOP;

    IF v_next > before THEN
        v_words := numbers_of(p_words);
        INSERT INTO events (position, recorded_at, revision, category, id, correlation, stream, hash, seal, leaf, salt, data)
        SELECT e.place, append.recorded_at, e.revision, v_words[e.category], e.id, e.correlation, p_streams[e.owner], e.hash,
               substring(sha256(int8send(e.place) || int8send(append.recorded_at) || e.hash) FROM 1 FOR 8), e.leaf, e.salt, e.data
        FROM unnest(v_places, p_owners, p_revisions, p_categories, p_ids, p_correlations, p_hashes, p_leaves, p_salts, p_data)
             AS e (place, owner, revision, category, id, correlation, hash, leaf, salt, data)
        WHERE e.place IS NOT NULL;
        INSERT INTO tags (word, position)
        SELECT v_words[t.word], v_places[t.event] FROM unnest(p_tag_words, p_tag_events) AS t (word, event)
        WHERE v_places[t.event] IS NOT NULL;
        IF p_redacts IS NOT NULL THEN
            INSERT INTO redactions (event, event_id, record)
            SELECT p_redacts, e.id, v_next FROM events e WHERE e.position = p_redacts;
            UPDATE events e SET salt = NULL, data = NULL WHERE e.position = p_redacts;
        END IF;
        PERFORM pg_notify('beampipe_@schema@', v_next::text);
    END IF;

    -- The last leaf names the one before, and so on: if it is there, the whole append is.
    FOR i IN 1..cardinality(p_streams) LOOP
        IF positions[i] IS NOT NULL THEN
            outcomes := outcomes || 'w';
        ELSE
            SELECT e.position INTO v_found FROM events e
            WHERE e.stream = p_streams[i] AND e.revision = p_last_revisions[i] AND e.hash = p_last_hashes[i];
            positions[i] := v_found;
            v_repeated := v_repeated OR v_found IS NOT NULL;
            outcomes := outcomes || CASE WHEN v_found IS NULL THEN 'c' ELSE 'r' END;
        END IF;
    END LOOP;
    IF v_repeated THEN
        -- The first call may have been broken off while it waited for a standby. A record of our own, behind its own in
        -- the write-ahead log, is not answered before both are as durable as the server promises.
        PERFORM pg_logical_emit_message(true, 'beampipe', '');
    END IF;
END $$;

-- Takes events over as they are, with their positions and times, behind p_head; what they say was checked by the caller,
-- who looked at the streams when the log ended at p_head. Answers whether it still did; else nothing was written.
CREATE FUNCTION @schema@.restore(
    p_head bigint, p_recorded bigint[], p_streams text[], p_revisions bigint[], p_categories integer[],
    p_ids uuid[], p_correlations uuid[], p_hashes bytea[], p_leaves bytea[], p_salts bytea[], p_data bytea[],
    p_words text[], p_tag_words integer[], p_tag_events integer[], p_redacted bigint[], p_records bigint[]
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = @schema@, pg_temp AS $$
DECLARE
    v_words integer[];
    v_head  bigint;
BEGIN
    SELECT t.o_position INTO v_head FROM take_turn() t;
    IF v_head <> p_head THEN
        RETURN false;
    END IF;
    v_words := numbers_of(p_words);
    INSERT INTO events (position, recorded_at, revision, category, id, correlation, stream, hash, seal, leaf, salt, data)
    SELECT p_head + e.i, e.recorded, e.revision, v_words[e.category], e.id, e.correlation, e.stream, e.hash,
           substring(sha256(int8send(p_head + e.i) || int8send(e.recorded) || e.hash) FROM 1 FOR 8), e.leaf, e.salt, e.data
    FROM unnest(p_recorded, p_streams, p_revisions, p_categories, p_ids, p_correlations, p_hashes, p_leaves, p_salts, p_data)
         WITH ORDINALITY AS e (recorded, stream, revision, category, id, correlation, hash, leaf, salt, data, i);
    INSERT INTO tags (word, position)
    SELECT v_words[t.word], p_head + t.event FROM unnest(p_tag_words, p_tag_events) AS t (word, event);
    INSERT INTO redactions (event, event_id, record)
    SELECT r.event, e.id, r.record FROM unnest(p_redacted, p_records) AS r (event, record)
    JOIN events e ON e.position = r.event
    ON CONFLICT DO NOTHING;
    PERFORM pg_notify('beampipe_@schema@', (p_head + cardinality(p_recorded))::text);
    RETURN true;
END $$;

CREATE FUNCTION @schema@.beat(p_who text, p_facts text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = @schema@, pg_temp AS $$
DECLARE
    v_now     bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    v_counter bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO beats AS b (who, counter, at, facts) VALUES (p_who, 1, v_now, p_facts)
    ON CONFLICT (who) DO UPDATE SET counter = b.counter + 1, at = v_now, facts = p_facts
    RETURNING b.counter INTO v_counter;
    IF v_counter = 1 THEN
        -- Whoever was silent for a day is gone.
        DELETE FROM beats b WHERE b.at < v_now - 86400000000;
    END IF;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA @schema@ FROM PUBLIC;
