# pthreads(7): native threads that never touch Python.

from posix.time cimport timespec

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass

    int pthread_create(pthread_t *thread, const void *attr, void *(*start)(void *) noexcept nogil, void *arg)
    int pthread_join(pthread_t thread, void **value)
    int pthread_timedjoin_np(pthread_t thread, void **value, const timespec *abstime)
    int pthread_detach(pthread_t thread)
    int pthread_setname_np(pthread_t thread, const char *name)
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attr)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *cond, const void *attr)
    int pthread_cond_destroy(pthread_cond_t *cond)
    int pthread_cond_signal(pthread_cond_t *cond)
    int pthread_cond_broadcast(pthread_cond_t *cond)
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
    int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, int clock, const timespec *abstime)
    int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const timespec *abstime)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *oldset)

cdef extern from * nogil:
    """
    #define argusd_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define argusd_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define argusd_add(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
    #define argusd_swap(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
    """
    int load_int "argusd_load"(int *p)
    void store_int "argusd_store"(int *p, int value)
    int swap_int "argusd_swap"(int *p, int value)
    int add_int "argusd_add"(int *p, int value)
    void *load_pointer "argusd_load"(void **p)
    void store_pointer "argusd_store"(void **p, void *value)
    unsigned long long load_u64 "argusd_load"(unsigned long long *p)
    void store_u64 "argusd_store"(unsigned long long *p, unsigned long long value)
    unsigned long long add_u64 "argusd_add"(unsigned long long *p, unsigned long long value)
    unsigned long long swap_u64 "argusd_swap"(unsigned long long *p, unsigned long long value)
