-- One command may lie in the dead-letter topic more than once: input that is read again (`repair
-- partition --from`, a consumer group of another name) leaves the same dead letters at other places.
-- Sent again twice it would be two records of the input, so two workers. Therefore a letter also has the
-- identity of the record that it was, and of those only one is sent again.
--
-- Null: the letter does not say, or it was dealt with before this migration; then its place alone counts.
-- Rows whose letters are no longer in the log do no harm, and still tell what was sent again.
ALTER TABLE dead_letters_handled ADD COLUMN origin UUID;  -- hash of the record's place, time and content
CREATE UNIQUE INDEX dead_letters_sent_again ON dead_letters_handled (origin) WHERE action = 'retry';
