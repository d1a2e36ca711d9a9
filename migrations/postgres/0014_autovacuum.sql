-- min_reader: 8
--
-- Vacuum comes early and often: with PostgreSQL's defaults it waits until a fifth of a table is dead, which is
-- tens of millions of rows of processed_events, and the table and its indexes grow by as much. No row is read or
-- rewritten. A parameter that the owner of the tables has set stays.
--
-- A lock that is not available soon is requested again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT name, parameter, value
        FROM (VALUES
            -- Inserts count too, so that rows which are marked once and not changed are frozen in small steps.
            ('processed_events', 'autovacuum_vacuum_scale_factor', '0.01'),
            ('processed_events', 'autovacuum_vacuum_insert_scale_factor', '0.02'),
            ('processed_events', 'autovacuum_analyze_scale_factor', '0.02'),
            -- A sweep deletes faster than a vacuum that pauses can follow.
            ('processed_events', 'autovacuum_vacuum_cost_delay', '0'),
            ('oncegate_sessions', 'autovacuum_vacuum_scale_factor', '0.02'),
            ('oncegate_sessions', 'autovacuum_analyze_scale_factor', '0.02'),
            ('oncegate_sessions', 'autovacuum_vacuum_cost_delay', '0'),
            -- Small, and changed with every wait and every heartbeat.
            ('oncegate_waiters', 'autovacuum_vacuum_scale_factor', '0.01'),
            ('oncegate_replicas', 'autovacuum_vacuum_scale_factor', '0.01')
        ) AS parameters (name, parameter, value)
        WHERE NOT EXISTS (
            SELECT FROM pg_class, unnest(reloptions) AS option
            WHERE pg_class.oid = name::regclass AND split_part(option, '=', 1) = parameter)
    LOOP
        EXECUTE format('ALTER TABLE %I SET (%s = %s)', wanted.name, wanted.parameter, wanted.value);
    END LOOP;
END
$$;
