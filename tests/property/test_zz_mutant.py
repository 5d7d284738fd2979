import tests.property.test_state_machine as t


def test_m(shared_database):
    with shared_database.connect() as c:
        c.execute(open("/tmp/mutant.sql").read())
    t.test_a_job_keeps_its_invariants_under_any_order_of_calls.__wrapped__(
        shared_database
    ) if hasattr(
        t.test_a_job_keeps_its_invariants_under_any_order_of_calls, "__wrapped__"
    ) else t.test_a_job_keeps_its_invariants_under_any_order_of_calls(shared_database)
