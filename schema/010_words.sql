-- One word for one thing (docs/glossary.md): the names of columns and constraints follow the code.
ALTER TABLE repairs RENAME COLUMN subject TO target;                      -- 'lane 2', 'partition 0 of init_scenario'
ALTER TABLE consumed_offsets RENAME CONSTRAINT an_offset TO next_offset_not_negative;
ALTER INDEX dead_letters_sent_again RENAME TO dead_letters_retried_once;
