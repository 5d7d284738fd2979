-- Answers to jobs that were enqueued together come in one row; a function keeps the columns of its answer while it exists.

drop function if exists jobforge.enqueue_plain_jobs(text, text, text, text, text, text, text, bigint, bytea, text, text[], text[],
  integer[], text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[]);
