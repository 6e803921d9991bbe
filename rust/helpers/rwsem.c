// SPDX-License-Identifier: GPL-2.0

#include <linux/lockdep.h>
#include <linux/rwsem.h>
#include <linux/sched/mm.h>

__rust_helper void rust_helper_rwsem_assert_held(struct rw_semaphore *sem)
{
	rwsem_assert_held(sem);
}

__rust_helper void rust_helper_rwsem_assert_held_write(struct rw_semaphore *sem)
{
	rwsem_assert_held_write(sem);
}

__rust_helper void rust_helper_rwsem_might_lock(struct rw_semaphore *sem)
{
	might_lock(sem);
}

__rust_helper void rust_helper_fs_reclaim_acquire(gfp_t gfp_mask)
{
	fs_reclaim_acquire(gfp_mask);
}

__rust_helper void rust_helper_fs_reclaim_release(gfp_t gfp_mask)
{
	fs_reclaim_release(gfp_mask);
}
