int32_t guarded_confine(void);
